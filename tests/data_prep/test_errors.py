from __future__ import annotations

import pytest

from data_prep.errors import MAX_QUOTED, did_you_mean, quote, shorten


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"x" * 10**6,
        ["x" * 500] * 500,
        {"x" * 500: "x" * 500},
        nested(80),
        (("x" * 300,) * 30,) * 30,
    ],
)
def test_a_message_repeats_little_of_an_input(value: object) -> None:
    assert len(quote(value)) <= MAX_QUOTED + 10


@pytest.mark.parametrize("value", ["name", b"name", 7, [1, 2, 3], None, 1.5])
def test_a_short_input_is_quoted_as_a_whole(value: object) -> None:
    assert quote(value) == repr(value)


def test_an_integer_of_many_digits_is_not_converted() -> None:
    assert quote(10**5000) == "a large int"
    assert quote([10**5000]) == "a large list"


def test_texts_and_errors_are_shortened() -> None:
    assert shorten(ValueError("x" * 300)) == "x" * 200 + "..."
    assert shorten("short") == "short"


def test_a_long_word_is_compared_in_short() -> None:
    assert did_you_mean("cifar" + "1" * 10**6, ["cifar10"]) == ""
    assert did_you_mean("cifar1", ["cifar10"]) == " (did you mean 'cifar10'?)"

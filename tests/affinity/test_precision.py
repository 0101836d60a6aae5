from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from affsup_cli.affinity import precision

MATMUL = torch.backends.cuda.matmul
SETTINGS: dict[str, Callable[[], object]] = {
    "default": lambda: None,
    "allow_tf32": lambda: setattr(MATMUL, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "fp32_precision of products": lambda: setattr(MATMUL, "fp32_precision", "tf32"),
    "fp32_precision of all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


def reset() -> None:
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    MATMUL.fp32_precision = "none"


@pytest.fixture
def _defaults() -> Iterator[None]:
    reset()
    yield
    reset()


def state() -> list[Any]:
    """The settings of TF32, or the error of reading one that PyTorch calls mixed."""

    def read(setting: Callable[[], object]) -> object:
        try:
            return setting()
        except RuntimeError as error:
            return str(error)

    names = (lambda: MATMUL.allow_tf32, torch.get_float32_matmul_precision, lambda: torch.backends.fp32_precision)
    return [MATMUL.fp32_precision, *(read(name) for name in names)]


@pytest.mark.usefixtures("_defaults")
@pytest.mark.parametrize("setting", SETTINGS)
def test_tf32_is_off_inside_and_afterwards_as_the_caller_has_set_it(setting: str) -> None:
    SETTINGS[setting]()
    before = state()
    for _ in range(2):
        with precision._ieee_products():
            assert MATMUL.fp32_precision in ("none", "ieee")
            assert not MATMUL.allow_tf32  # raises where old and new settings are mixed
        assert state() == before
    assert (before[0] == "tf32") == (setting != "default")


@pytest.mark.usefixtures("_defaults")
def test_a_caller_who_has_turned_tf32_off_again_keeps_it_off() -> None:
    torch.set_float32_matmul_precision("high")
    MATMUL.fp32_precision = "ieee"
    with precision._ieee_products():
        assert MATMUL.fp32_precision == "ieee"
    assert MATMUL.fp32_precision == "ieee"


@pytest.mark.usefixtures("_defaults")
def test_a_setting_for_all_products_can_be_changed_afterwards() -> None:
    torch.backends.fp32_precision = "tf32"
    with precision._ieee_products():
        pass
    torch.backends.fp32_precision = "ieee"
    assert MATMUL.fp32_precision == "ieee"

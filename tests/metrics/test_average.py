from __future__ import annotations

import pytest
import torch

from affsup_cli.metrics.average import Averages


def test_means_are_weighted(device: torch.device) -> None:
    averages = Averages()
    averages.add({"a": torch.tensor(1.0, device=device), "b": torch.tensor(5.0, device=device)}, weight=3)
    averages.add({"a": torch.tensor(2.0, device=device)}, weight=1)
    assert averages.read() == pytest.approx({"a": (3 * 1 + 2) / 4, "b": 5})


def test_nothing_counted_is_nothing_read() -> None:
    assert Averages().read() == {}


def test_many_small_terms_are_not_lost() -> None:
    averages = Averages()
    averages.add({"a": torch.tensor(1e8)}, weight=1)
    for _ in range(100):
        averages.add({"a": torch.tensor(1.0)}, weight=1)
    assert averages.read()["a"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_a_stored_state_continues_to_the_same_bits(device: torch.device) -> None:
    values = torch.rand(10, generator=torch.Generator().manual_seed(0)).to(device)
    whole, first, second = Averages(), Averages(), Averages()
    for value in values:
        whole.add({"a": value}, weight=7)
    for value in values[:4]:
        first.add({"a": value}, weight=7)
    second.load_state_dict(first.state_dict())
    for value in values[4:]:
        second.add({"a": value}, weight=7)
    assert second.read() == whole.read()


def test_a_weight_may_be_a_count_on_the_device_and_what_never_counted_is_not_read(device: torch.device) -> None:
    averages = Averages()
    for value, count in ((0.5, 3), (0.0, 0), (0.9, 1)):
        averages.add({"mass": torch.tensor(value, device=device)}, torch.tensor(count, device=device))
    averages.add({"never": torch.tensor(0.0, device=device)}, torch.tensor(0, device=device))
    averages.add({"loss": torch.tensor(2.0, device=device)}, 4)
    assert averages.read() == pytest.approx({"mass": (3 * 0.5 + 0.9) / 4, "loss": 2})
    resumed = Averages()
    resumed.load_state_dict(averages.state_dict())
    assert resumed.read() == averages.read()

from __future__ import annotations

import torch

from affsup_cli.bench.turns import compare


def test_each_comes_first_in_every_second_round() -> None:
    called: list[str] = []
    compare(lambda: called.append("reference"), lambda: called.append("ours"), torch.device("cpu"), rounds=4)
    firsts = called[2::2]  # after the round without a clock
    assert firsts == ["reference", "ours", "reference", "ours"]
    assert called[3::2] == ["ours", "reference", "ours", "reference"]

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from affsup_cli.training.observers import TensorBoard
from data_prep.errors import UsageError


def test_tensorboard_holds_every_number_of_an_epoch(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.epoch_ended({"epoch": 1, "train_loss": 2.5, "val_accuracy": 0.25})
    board.epoch_ended({"epoch": 2, "train_loss": 1.5, "val_accuracy": 0.75})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    stored = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert stored == {"train_loss": [(1, 2.5), (2, 1.5)], "val_accuracy": [(1, 0.25), (2, 0.75)]}


def test_without_the_package_the_field_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"affsup\[tensorboard\]"):
        TensorBoard(tmp_path)

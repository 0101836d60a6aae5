from __future__ import annotations

from pathlib import Path

import pytest
import torch

from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.recipe import load_recipe
from affsup_cli.tasks.launch import Planned, train_run, train_together
from affsup_cli.tasks.minibatch import MinibatchTask
from data_prep.errors import AffsupError
from tests.engine.test_training import assert_same_end


def test_runs_of_a_pack_end_to_the_bit_as_each_alone(digits: Path, tmp_path: Path) -> None:
    fields = {"data.name": "digits", "run.device": "cpu", "train.epochs": 2, "train.batch_size": 320}
    pack = [{"seed": 0}, {"seed": 1}, {"seed": 1, "affinity.loss": "none"}]
    recipes = [load_recipe("minibatch", fields | own) for own in pack]
    together = [Planned(recipe, RunFolder(tmp_path / f"together{place}")) for place, recipe in enumerate(recipes)]
    assert dict(train_together(together, digits)) == {0: None, 1: None, 2: None}
    for place, recipe in enumerate(recipes):
        alone = train_run(recipe, digits, RunFolder(tmp_path / f"alone{place}"))
        assert_same_end(together[place].run, alone)
        assert together[place].run.environment()["together"] == 3


def test_a_run_of_a_pack_that_cannot_be_trained_stops_no_other(digits: Path, tmp_path: Path) -> None:
    fields = {"data.name": "digits", "run.device": "cpu", "train.epochs": 1, "train.batch_size": 640}
    recipes = [load_recipe("minibatch", fields | {"train.learning_rate": rate}) for rate in (1e30, 0.1)]
    pack = [Planned(recipe, RunFolder(tmp_path / f"run{place}")) for place, recipe in enumerate(recipes)]
    ended = dict(train_together(pack, digits))
    assert isinstance(ended[0], AffsupError)
    assert ended[1] is None
    assert [planned.run.finished for planned in pack] == [False, True]
    with pack[0].run.lock():  # nobody holds it any more
        pass


def test_runs_side_by_side_that_do_not_fit_are_told_that_fewer_would(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nOf the device's memory ...")

    monkeypatch.setattr(MinibatchTask, "losses", full)
    recipe = load_recipe("minibatch", {"data.name": "digits", "run.device": "cpu", "train.batch_size": 640})
    pack = [Planned(recipe, RunFolder(tmp_path / name)) for name in ("first", "second")]
    for failure in dict(train_together(pack, digits)).values():
        assert isinstance(failure, AffsupError)
        assert str(failure).startswith("out of memory: fewer than the 2 runs side by side (--")
        assert "or a new run with a smaller train.batch_size" in str(failure)
        assert "(CUDA out of memory.)" in str(failure)
    with pytest.raises(AffsupError, match=r"^out of memory: a new run with a smaller train\.batch_size, or"):
        train_run(recipe, digits, RunFolder(tmp_path / "alone"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_on_a_gpu_runs_of_a_pack_train_as_each_alone(digits: Path, tmp_path: Path) -> None:
    fields = {"data.name": "digits", "run.device": "cuda", "train.epochs": 2, "train.batch_size": 64}
    recipes = [load_recipe("minibatch", fields | {"seed": seed}) for seed in range(4)]
    pack = [Planned(recipe, RunFolder(tmp_path / f"together{recipe.seed}")) for recipe in recipes]
    assert dict(train_together(pack, digits)) == dict.fromkeys(range(4))
    for planned in pack:
        alone = train_run(planned.recipe, digits, RunFolder(tmp_path / f"alone{planned.recipe.seed}"))
        for mine, expected in zip(planned.run.metrics(), alone.metrics(), strict=True):
            assert mine["train_loss"] == pytest.approx(expected["train_loss"], rel=0.05)
            for name in ("val_accuracy", "val_mass"):
                assert mine[name] == pytest.approx(expected[name], abs=0.1)

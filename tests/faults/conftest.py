"""A small real run for the fault tests, and how many faults are tried."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks.launch import train_run

FIELDS = {
    "train.epochs": 2,
    "train.batch_size": 64,
    "data.train_images": 128,
    "train.milestones": [],
    "run.device": "cpu",
    "run.checkpoint_seconds": 1e-9,
}


@pytest.fixture(scope="session")
def times() -> int:
    """How often each fault is tried: a few times in `make test`, more often in `make test-faults`."""
    return int(os.environ.get("AFFSUP_FAULTS", "6"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers from a seed that a failing test prints; AFFSUP_FAULT_SEED repeats it."""
    seed = int(os.environ.get("AFFSUP_FAULT_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{request.node.name}: AFFSUP_FAULT_SEED={seed}")  # noqa: T201
    return random.Random(seed)


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two epochs on a part of the digits."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "trained")
    return train_run(load_recipe("minibatch", FIELDS), digits, run)


@pytest.fixture
def copy_run(trained: RunFolder, tmp_path: Path) -> Callable[[], RunFolder]:
    """Make an undamaged copy of `trained`, in place of the one before."""

    def copy() -> RunFolder:
        target = tmp_path / "runs" / "run"
        shutil.rmtree(target, ignore_errors=True)
        return RunFolder(Path(shutil.copytree(trained.path, target)))

    return copy

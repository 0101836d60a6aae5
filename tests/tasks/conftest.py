"""What the tests of scene categories share."""

from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks.launch import train_run
from tests.small_scenes import small


@pytest.fixture(scope="session")
def part_a(shape_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of relnet on shapes."""
    folder = tmp_path_factory.mktemp("runs") / "part-a"
    train_run(small(), shape_scenes, RunFolder(folder))
    return folder


@pytest.fixture
def undescribed(shape_scenes: Path, tmp_path: Path) -> Path:
    """A data folder of the same scenes, in which no run has kept anything yet."""
    folder = tmp_path / "undescribed"
    folder.mkdir()
    for name in ("shapes", "shape-scenes"):
        (folder / name).symlink_to(shape_scenes / name)
    return folder

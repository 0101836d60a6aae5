from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.fake_runs import RunMaker


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")

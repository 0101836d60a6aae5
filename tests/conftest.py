"""What all tests share."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import data_prep
from tests.reporting.fake_runs import RunMaker

if TYPE_CHECKING:
    import torch

os.environ["COLUMNS"] = "120"  # rich asks once, when its console is made, and wraps tables to it


@pytest.fixture(scope="session", autouse=True)
def own_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have torch.compile keep its kernels in a folder of these tests.

    Its usual folder does not tell settings of ATEN_CPU_CAPABILITY apart: a kernel kept under one fails under another.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the digits prepared: real images that need no file."""
    folder = tmp_path_factory.mktemp("data")
    data_prep.prepare("digits", data_dir=folder)
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few generated scenes prepared."""
    folder = tmp_path_factory.mktemp("data")
    data_prep.prepare("shapes", data_dir=folder, limit=24)
    return folder


@pytest.fixture(scope="session")
def shape_scenes(shapes: Path) -> Path:
    """The data folder of `shapes`, with a few generated scenes of known categories beside them."""
    data_prep.prepare("shape-scenes", data_dir=shapes, limit=28)
    return shapes


@pytest.fixture(scope="session")
def voc_mini(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the small real VOC prepared."""
    folder = tmp_path_factory.mktemp("data")
    data_prep.prepare("voc07", sources=[real_data / "voc_mini" / "VOCdevkit"], data_dir=folder)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that AFFSUP_REAL_DATA names."""
    folder = os.environ.get("AFFSUP_REAL_DATA")
    if not folder:
        pytest.skip("AFFSUP_REAL_DATA names no folder of real data sets")
    return Path(folder)


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    """Makes run folders with any numbers, without training."""
    return RunMaker(tmp_path / "runs")


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs/closed`, which may not be entered: not by root either, whom no mode of it would stop."""
    folder = tmp_path / "runs" / "closed"
    folder.mkdir(parents=True)

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, Path) and folder in path.parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *arguments, **options)

        return refused

    monkeypatch.setattr(os, "stat", refusing(os.stat))
    monkeypatch.setattr(io, "open", refusing(io.open))
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    import torch  # not above: the process that only hands out the tests does without

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    return torch.device(request.param)

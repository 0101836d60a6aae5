from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.decode import parallel
from data_prep.decode.parallel import Encoded, decode_all
from data_prep.errors import AffsupError, SourceError
from data_prep.sets import tiny_imagenet
from tests.data_prep.conftest import OfficialFiles

SHAPE = (2, 1, 3)


def fill(encoded: Sequence[Encoded], images: NDArray[np.uint8]) -> None:
    """Stands in for a decoder: a picture is as bright as the first byte of its file."""
    for (_, content), image in zip(encoded, images, strict=True):
        image[:] = content[0]


def die(encoded: Sequence[Encoded], images: NDArray[np.uint8]) -> None:
    os._exit(3)


def pictures(count: int) -> list[Encoded]:
    return [(f"{i}.jpg", bytes([i])) for i in range(count)]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Few pictures are enough for processes; whatever becomes of them, they leave nothing behind."""
    monkeypatch.setattr(parallel, "_MIN_PARALLEL", 1)
    monkeypatch.setattr(parallel, "_CHUNK", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("processes")
def test_processes_give_the_pictures_in_order_in_blocks() -> None:
    blocks = list(decode_all(pictures(23), 23, SHAPE, fill, block=5, cores=2))
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 3]
    expected = np.broadcast_to(np.arange(23).reshape(-1, 1, 1, 1), (23, *SHAPE))
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.usefixtures("processes")
def test_a_damaged_picture_is_named_by_the_process_that_met_it(official: OfficialFiles) -> None:
    encoded = [(f"{i}.JPEG", official.jpeg(i)) for i in range(8)]
    encoded[5] = ("5.JPEG", b"no picture")
    with pytest.raises(SourceError, match=r"^5\.JPEG: cannot be decoded"):
        list(decode_all(encoded, 8, (64, 64, 3), tiny_imagenet.decode, block=4, cores=2))


@pytest.mark.usefixtures("processes")
def test_who_stops_early_leaves_no_process_behind() -> None:
    blocks = decode_all(pictures(200), 200, SHAPE, fill, block=10, cores=2)
    next(blocks)
    assert len(multiprocessing.active_children()) == 2
    blocks.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("processes")
def test_a_process_that_dies_is_an_error_that_says_why() -> None:
    with pytest.raises(AffsupError, match="a process that decodes images died"):
        list(decode_all(pictures(8), 8, SHAPE, die, block=4, cores=2))


@pytest.mark.usefixtures("processes")
def test_a_full_disk_is_named_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AffsupError, match=r"affsup-.*: No space left on device: make room there.*TMPDIR"):
        list(decode_all(pictures(8), 8, SHAPE, fill, block=4, cores=2))


def test_processes_clear_up_after_one_that_is_killed(tmp_path: Path) -> None:
    script, temporary = tmp_path / "script.py", tmp_path / "temporary"
    script.write_text(_DECODES_FOR_EVER)
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        assert process.stdout.readline() == b"decoding\n"
        assert list(temporary.iterdir())
        process.kill()
        process.stdout.read()  # open as long as one of its processes is there
    assert list(temporary.iterdir()) == []


_DECODES_FOR_EVER = """
import itertools
from data_prep.decode.parallel import decode_all

def fill(encoded, images):
    images[:] = 1

if __name__ == "__main__":
    for number, _ in enumerate(decode_all(itertools.repeat(("", b"")), 10**8, (2, 1, 3), fill, block=250, cores=2)):
        if number == 0:
            print("decoding", flush=True)
"""


@pytest.mark.parametrize(("count", "cores"), [(9, 2), (10, 1)])
def test_few_pictures_and_a_single_core_are_decoded_here(
    count: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_MIN_PARALLEL", 10)
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)
    blocks = list(decode_all(pictures(count), count, SHAPE, fill, block=4, cores=cores))
    assert np.concatenate(blocks)[:, 0, 0, 0].tolist() == list(range(count))


@pytest.mark.real_data
@pytest.mark.usefixtures("processes")
def test_real_photographs_come_out_of_processes_as_they_do_here(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_CHUNK", 100)
    with zipfile.ZipFile(real_data / "tiny_imagenet" / "tiny-imagenet-20.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")][:550]
        encoded = [(name, archive.read(name)) for name in names]
    here, there = (
        np.concatenate(list(decode_all(encoded, 550, (64, 64, 3), tiny_imagenet.decode, block=250, cores=cores)))
        for cores in (1, 2)
    )
    np.testing.assert_array_equal(here, there)
    assert here.std() > 10

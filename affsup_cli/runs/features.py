"""Features of test images in a run folder (figure 6): a NumPy archive. No torch."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affsup_cli.runs.digest import add_archive_digest, check_archive
from affsup_cli.runs.folder import atomic_file
from data_prep.errors import AffsupError, unreadable

_MAX_BYTES = 2**30  # of an array


def write_features(path: Path, features: NDArray[np.float16], labels: NDArray[np.int64]) -> None:
    """Write the features `[n, D]` of n images and their classes `[n]`."""
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(file, features=features, labels=labels)
        add_archive_digest(temporary)


def read_features(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the features `[n, D]` and classes `[n]` of `write_features`.

    Raises:
        FileNotFoundError: there is no such file.
        AffsupError: the file is damaged; the message says how.
    """
    try:
        check_archive(path)
        with path.open("rb") as stored, zipfile.ZipFile(stored) as members:
            features, labels = (_read_array(members, f"{name}.npy") for name in ("features", "labels"))
            if features.ndim != 2 or labels.shape != features.shape[:1]:
                raise ValueError(f"it holds features {features.shape} with labels {labels.shape}")
            return features.astype(np.float32), labels.astype(np.int64)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AffsupError(unreadable(path, error)) from error
    except Exception as error:  # NumPy and zipfile raise errors of a dozen kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AffsupError(f"{path.name} is damaged: {reason[:200]}") from error


def _read_array(members: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array of numbers after a check of its declared size; raises ValueError."""
    with members.open(name) as file:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "fiu" or size > min(_MAX_BYTES, members.getinfo(name).file_size):
            raise ValueError(f"{name} declares {dtype} {shape}, more than the file holds or than is read")
    with members.open(name) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array

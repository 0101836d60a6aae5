"""A run folder: all files of one training run, and all that reports read. No torch.

recipe.toml        the resolved recipe
environment.json   versions, device, git commit, the data's digest and limit
metrics.jsonl      one line an epoch
last.pt            the newest checkpoint: continues the run
best.pt            the model of the best epoch on the validation split
features.npz       test features of that model (figure 6)
examples.h5        a few test images and what is related in them (figures 1, 7 and 9)
detections-SPLIT.json    detections in COCO's results format
relationships-SPLIT.h5   the strongest pairs of proposals of each image
result.json        written last: its presence says that the run is finished
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affsup_cli.recipe import Recipe, read_recipe
from data_prep.errors import AffsupError, UsageError

MAX_EPOCHS = 10_000
"""Number of epochs of a run that tables, curves and lists read at most."""


@dataclasses.dataclass(frozen=True)
class History:
    """The metrics of a run.

    Attributes:
        epochs: number of finished epochs.
        records: the lines that were read, by epoch.
    """

    epochs: int
    records: list[dict[str, Any]]


class RunInUse(AffsupError):
    """Another process has locked the run folder."""


RESUME = "call again (train --resume)"
"""What to do after a full disk, for the files of a run."""


@contextlib.contextmanager
def atomic_file(path: Path, then: str = "call again") -> Iterator[Path]:
    """Yield a temporary path; on success it atomically replaces `path`, on failure `path` stays as it was.

    Args:
        path: what is to be written.
        then: what to do after making room on a full disk, for the message.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _failed_writes_explained(path, then):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_out(path: Path, content: bytes) -> None:
    """Write a file that a user asked for atomically, and create its folder.

    Raises:
        AffsupError: it cannot be written there.
    """
    elsewhere = "Name another place with --out"
    blocking = next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None)
    if blocking:
        raise AffsupError(f"cannot write {path}: {blocking} is not a folder. {elsewhere}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise AffsupError(f"cannot write {path}: {error.strerror}. {elsewhere}") from error


@contextlib.contextmanager
def _failed_writes_explained(path: Path, then: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not path.parent.is_dir():
            raise AffsupError(f"{path.parent} is gone: it was moved or deleted while it was written to") from error
        if _no_space(error):
            free = shutil.disk_usage(path.parent).free
            raise AffsupError(f"no space to write {path}: {free / 2**20:.0f} MiB free. Make room and {then}") from error
        raise


def _no_space(error: BaseException) -> bool:
    """Return whether the disk is full; torch.save raises a RuntimeError from the OSError of a failed write."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return "file write failed" in str(error) or "enforce fail at inline_container" in str(error)


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "last.pt"
        self.best = path / "best.pt"
        self.features = path / "features.npz"
        self.examples = path / "examples.h5"
        self._recipe = path / "recipe.toml"
        self._environment = path / "environment.json"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            UsageError: `path` is not a run folder.
        """
        run = cls(path)
        if not run.exists:
            raise UsageError(
                f"{path} is not a run folder (no recipe.toml in it); `affsup list runs` names those there are"
            )
        return run

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    def detections(self, split: str) -> Path:
        """The file of the detections in a split, in COCO's results format."""
        return self.path / f"detections-{split}.json"

    def relationships(self, split: str) -> Path:
        """The file of the strongest relationship proposals of a split, HDF5."""
        return self.path / f"relationships-{split}.h5"

    @property
    def exists(self) -> bool:
        """Whether a run was started here; true where the folder may not be read."""
        return _is_file(self._recipe, unseen=True)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return _is_file(self._result, unseen=False)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process; the operating system releases the lock even after kill -9.

        Raises:
            RunInUse: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                for litter in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                    litter.unlink()
                yield
        except Timeout:
            raise RunInUse(
                f"{self.path} is in use by another process; wait for it, or give this run a --name of its own"
            ) from None

    @property
    def in_use(self) -> bool:
        """Whether a process has locked the folder; false where it cannot be locked at all."""
        if not self.path.is_dir():
            return False
        try:
            with self.lock():
                return False
        except RunInUse:
            return True
        except OSError:
            return False

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the resolved recipe."""
        self._write(self._recipe, recipe.to_toml())

    def recipe(self) -> Recipe:
        """Read the resolved recipe."""
        return read_recipe(self._recipe)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Store the environment of the run."""
        self._write(self._environment, json.dumps(environment, indent=2) + "\n")

    def environment(self) -> dict[str, Any]:
        """Read the environment of the run.

        Raises:
            AffsupError: the file is missing or damaged.
        """
        content = self._read(self._environment, needed="data")
        data = content["data"]
        if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("name", "digest")):
            raise AffsupError(
                f"{self._environment} is damaged: expected the name and digest of a data set under 'data'"
            )
        return content

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append the line of one epoch."""
        with _failed_writes_explained(self._metrics, RESUME), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Read the lines of all epochs; a last line that a kill cut short is ignored.

        Raises:
            AffsupError: the file holds something else.
        """
        return self.history(limit=None).records

    def history(self, limit: int | None = MAX_EPOCHS) -> History:
        """Read the lines of at most `limit` epochs: evenly spaced ones, with the first and the last.

        Raises:
            AffsupError: one of these lines holds something else.
        """
        try:
            with self._metrics.open("rb") as file:
                epochs = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
                file.seek(0)
                if limit is None or epochs <= limit:
                    read = set(range(epochs))
                else:
                    read = {round(place * (epochs - 1) / (limit - 1)) for place in range(limit)}
                lines = enumerate(itertools.islice(file, epochs))
                return History(epochs, [self._record(line, number + 1) for number, line in lines if number in read])
        except FileNotFoundError:
            return History(0, [])
        except OSError as error:
            raise AffsupError(f"{self._metrics} cannot be read: {error.strerror}") from error

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AffsupError(f"{self._metrics}, line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict) or record.get("epoch") != number:
            raise AffsupError(f"{self._metrics}, line {number} is not the record of epoch {number}")
        return record

    def keep_metrics(self, epochs: int) -> None:
        """Remove the lines after the first `epochs` epochs: those after the checkpoint that a run resumes from.

        Raises:
            AffsupError: there are fewer lines than that.
        """
        kept = self.metrics()[:epochs]
        if len(kept) < epochs:
            raise AffsupError(
                f"{self._metrics} has {len(kept)} of the {epochs} epochs that {self.checkpoint.name} has behind it: "
                "the run's record is lost, begin it anew with another --name"
            )
        self._write(self._metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Store the result of the run, which marks it as finished."""
        self._write(self._result, json.dumps(result, indent=2, allow_nan=False) + "\n")

    def result(self) -> dict[str, Any]:
        """Read the result of the run.

        Raises:
            AffsupError: the run is not finished.
        """
        if not self.finished:
            raise AffsupError(f"{self.path} is not finished: continue it with `affsup train … --resume`")
        return self._read(self._result, needed="kind")

    def refuse_remains(self) -> None:
        """Refuse a folder that has files of a run but no recipe.

        Raises:
            AffsupError: it does.
        """
        files = (self._result, self._metrics, self.checkpoint, self.best)
        found = [path.name for path in files if path.exists()]
        if found and not self.exists:
            raise AffsupError(
                f"{self.path} holds {', '.join(found)} of some run without its recipe.toml: "
                "move the folder away, or take another --name"
            )

    def _read(self, path: Path, needed: str) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AffsupError(f"{path} is missing: the run folder is incomplete") from None
        except OSError as error:
            raise AffsupError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise AffsupError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict) or needed not in content:
            raise AffsupError(f"{path} is damaged: expected an object with the key '{needed}'")
        return content

    def _write(self, path: Path, text: str) -> None:
        with atomic_file(path, RESUME) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _is_file(path: Path, unseen: bool) -> bool:
    """Return whether `path` is a file, and `unseen` where its folder may not be read."""
    try:
        return path.is_file()
    except PermissionError:
        return unseen


def run_folders(root: Path) -> list[RunFolder]:
    """Return every run under `root`, by name; an unreadable folder raises when its recipe is read.

    Raises:
        UsageError: `root` is a run itself.
    """
    if not root.is_dir():
        return []
    found = [run for run in (RunFolder(path) for path in sorted(root.iterdir()) if path.is_dir()) if run.exists]
    if not found and RunFolder(root).exists:
        raise UsageError(f"{root} is a run folder: --runs is the folder above it, {root.resolve().parent}")
    return found

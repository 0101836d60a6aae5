"""A run folder: all files of one training run; reports read nothing else. No torch.

recipe.toml        the resolved recipe
environment.json   versions, device, git commit, the data's digest and limit
metrics.jsonl      one line an epoch
last.pt            the newest checkpoint: continues the run
previous.pt        the checkpoint before it, until the run is finished
best.pt            the model of the best epoch on the validation split
features.npz       test features of that model (figure 6)
examples.h5        a few test images with their attention between objects (figures 1, 7 and 9)
detections-SPLIT.json    detections in COCO's results format
relationships-SPLIT.h5   the strongest pairs of proposals of each image
scene-graphs-SPLIT.json  the same for SGBench
result.json        written last: its presence says that the run is finished

Each file but those of HDF5, detections and scene graphs holds a digest (`runs.digest`), which is checked when the file
is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affsup_cli.recipe import Recipe, read_recipe
from affsup_cli.runs.digest import DigestError, check_toml, toml_with_digest, with_digest, without_digest
from data_prep.errors import AffsupError, UsageError, unreadable
from data_prep.writing import fsync_path

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


RESUME = "run the command again (train --resume)"
"""What to do after a full disk, for the files of a run."""


@contextlib.contextmanager
def atomic_file(path: Path, then: str = "run the command again", previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; on success it atomically replaces `path`, on failure `path` stays as it was.

    Args:
        path: the file to write.
        then: the action after making room on a full disk, for the message.
        previous: receives the file that was at `path` before, in the same folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _failed_writes_explained(path, then):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if previous and path.exists():
                _keep_previous(path, previous)
            temporary.replace(path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_previous(path: Path, previous: Path) -> None:
    """Make `previous` a second name of `path`; on a file system without hard links, rename `path` to it."""
    link = path.with_name(f".{previous.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        path.replace(previous)
    else:
        link.replace(previous)


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
        number = _write_errno(error)
        if number == errno.EFBIG:
            raise AffsupError(
                f"cannot write {path}: it would be larger than the file-size limit of this shell or job (`ulimit -f` "
                f"shows it). Raise the limit and {then}"
            ) from error
        if number == errno.EDQUOT:
            raise AffsupError(f"cannot write {path}: your disk quota is used up. Make room and {then}") from error
        if number == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free
            raise AffsupError(f"no space to write {path}: {free / 2**20:.0f} MiB free. Make room and {then}") from error
        raise


def _write_errno(error: BaseException) -> int | None:
    """Return the error number of a failed write; torch.save raises a RuntimeError with the OSError as its context."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return cause.errno
        cause = cause.__cause__ or cause.__context__
    return None


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "last.pt"
        self.previous = path / "previous.pt"
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

    def scene_graphs(self, split: str) -> Path:
        """The file of the same pairs and their boxes, in the JSON format of SGBench."""
        return self.path / f"scene-graphs-{split}.json"

    @property
    def exists(self) -> bool:
        """Whether a run was started in this folder; true where it may not be read."""
        return _is_file(self._recipe, unseen=True)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return _is_file(self._result, unseen=False)

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint."""
        return self.checkpoint.exists() or self.previous.exists()

    @property
    def resume_command(self) -> str:
        """The command that continues this run, in backquotes."""
        return f"`affsup train {self._recipe} --runs {self.path.parent} --name {self.name} --resume`"

    @property
    def new_run(self) -> str:
        """What to do when a file that cannot be made again is lost."""
        return f"move {self.path} away and run the command again to start a new run"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process; the operating system releases the lock even after kill -9.

        Raises:
            RunInUse: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with _file_lock(self.path / ".lock"):
                for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                    if leftover.is_file():
                        leftover.unlink()
                yield
        except Timeout:
            raise RunInUse(
                f"{self.path} is in use by another process; wait until it ends, then run the command again"
            ) from None
        except NotImplementedError:
            raise AffsupError(
                f"the file system of {self.path} has no file locks (flock): choose a folder of another with --runs"
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
        self._write(self._recipe, toml_with_digest(recipe.to_toml()))

    def recipe(self) -> Recipe:
        """Read the resolved recipe.

        Raises:
            AffsupError: the file is missing or damaged.
        """
        try:
            check_toml(self._recipe.read_bytes())
            return read_recipe(self._recipe)
        except OSError as error:
            raise AffsupError(unreadable(self._recipe, error)) from error
        except ValueError as error:
            raise AffsupError(f"{self._recipe} is damaged ({error}): {self.new_run}") from error

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Store the environment of the run."""
        self._write(self._environment, json.dumps(with_digest(environment), indent=2) + "\n")

    def environment(self) -> dict[str, Any]:
        """Read the environment of the run.

        Raises:
            AffsupError: the file is missing or damaged.
        """
        content = self._read(self._environment, needed="data", cure=self.new_run)
        data = content["data"]
        if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("name", "digest")):
            raise AffsupError(
                f"{self._environment} is damaged: expected the name and digest of a data set under 'data'. "
                f"To fix this: {self.new_run}"
            )
        return content

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append the line of one epoch."""
        first = not self._metrics.exists()
        with _failed_writes_explained(self._metrics, RESUME), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(with_digest(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            if first:
                fsync_path(self.path)

    def metrics(self, epochs: int | None = None) -> list[dict[str, Any]]:
        """Read the lines of the epochs; a last line that a kill cut short is ignored.

        Args:
            epochs: read the lines of so many epochs only.

        Raises:
            AffsupError: the file is damaged.
        """
        return self.history(limit=None, first=epochs).records

    def history(self, limit: int | None = MAX_EPOCHS, first: int | None = None) -> History:
        """Read the lines of at most `limit` epochs: evenly spaced ones, with the first and the last.

        Args:
            limit: number of lines that are read at most; None for all.
            first: read only the first `first` epochs; None for all.

        Raises:
            AffsupError: one of these lines holds something else.
        """
        try:
            with self._metrics.open("rb") as file:
                epochs = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
                epochs = epochs if first is None else min(epochs, first)
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
            raise AffsupError(unreadable(self._metrics, error)) from error

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self._metrics}, line {number}"
        try:
            record = json.loads(line)
            record = without_digest(record) if isinstance(record, dict) else record
        except DigestError as error:
            raise AffsupError(f"{where} is damaged ({error}): {self.new_run}") from error
        except (ValueError, RecursionError) as error:
            raise AffsupError(f"{where} is not valid JSON ({error}): {self.new_run}") from error
        if not isinstance(record, dict) or record.get("epoch") != number:
            raise AffsupError(f"{where} is not the record of epoch {number}: {self.new_run}")
        return record

    def keep_metrics(self, epochs: int) -> None:
        """Remove the lines after the first `epochs` epochs: those after the checkpoint that a run resumes from.

        Raises:
            AffsupError: there are fewer lines than that.
        """
        kept = self.metrics(epochs)
        if len(kept) < epochs:
            raise AffsupError(
                f"{self._metrics} has {len(kept)} of the {epochs} epochs before {self.checkpoint.name}: the others are "
                f"lost, {self.new_run}"
            )
        self._write(self._metrics, "".join(json.dumps(with_digest(record)) + "\n" for record in kept))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Store the result of the run, which marks it as finished."""
        self._write(self._result, json.dumps(with_digest(result), indent=2, allow_nan=False) + "\n")

    def result(self) -> dict[str, Any]:
        """Read the result of the run.

        Raises:
            AffsupError: the run is not finished.
        """
        if not self.finished:
            raise AffsupError(f"{self.path} is not finished: continue it with `affsup train … --resume`")
        return self._read(self._result, needed="kind", cure=self.result_cure)

    @property
    def result_cure(self) -> str:
        """What to do when result.json is damaged."""
        if not self.resumable:
            return self.new_run
        return f"delete it; {self.resume_command} tests the model again and writes it"

    @property
    def best_cure(self) -> str:
        """What to do when best.pt is damaged."""
        try:
            last_is_best = self.finished and self.result().get("best_epoch") == self.result().get("epochs")
        except AffsupError:
            last_is_best = False
        if last_is_best and self.resumable:
            return f"delete it and result.json; {self.resume_command} writes both again from last.pt"
        return self.new_run

    @property
    def remains(self) -> list[str]:
        """The names of a run's files in a folder without a recipe."""
        files = (self._result, self._metrics, self.checkpoint, self.previous, self.best)
        return [] if self.exists else [path.name for path in files if path.exists()]

    def refuse_remains(self) -> None:
        """Refuse a folder that has files of a run but no recipe.

        Raises:
            AffsupError: it does.
        """
        if found := self.remains:
            raise AffsupError(f"{self.path} holds {', '.join(found)} of a run without its recipe.toml: {self.new_run}")

    def _read(self, path: Path, needed: str, cure: str) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                content = without_digest(content)
        except FileNotFoundError:
            raise AffsupError(f"{path} is missing: {cure}") from None
        except OSError as error:
            raise AffsupError(unreadable(path, error)) from error
        except DigestError as error:
            raise AffsupError(f"{path} is damaged ({error}): {cure}") from error
        except (ValueError, RecursionError) as error:
            raise AffsupError(f"{path} is not valid JSON ({error}): {cure}") from error
        if not isinstance(content, dict) or needed not in content:
            raise AffsupError(f"{path} is damaged: expected an object with the key '{needed}'. To fix this: {cure}")
        return content

    def _write(self, path: Path, text: str) -> None:
        with atomic_file(path, RESUME) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Lock `path` without waiting.

    Raises:
        Timeout: another process holds the lock.
        NotImplementedError: the file system has no locks.
    """
    lock = FileLock(path, timeout=0)
    with warnings.catch_warnings():
        # Without flock, newer versions of filelock use a lock file, and warn in terms that no user of affsup knows.
        warnings.filterwarnings("ignore", message=".*flock.*")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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

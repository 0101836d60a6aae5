"""A run folder: everything that one training run leaves behind, and all that reports read. No torch.

recipe.toml        the resolved recipe
environment.json   versions, device, git commit, the data's digest and limit
metrics.jsonl      one line an epoch
last.pt            the newest checkpoint: continues the run
best.pt            the model of the best epoch on the validation split
features.npz       test features of that model (figure 6)
result.json        written last: its presence says that the run is finished
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affsup_cli.errors import AffsupError
from affsup_cli.recipe import Recipe, read_recipe


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces `path` in one step, on failure `path` is left as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if _no_space(error):
            free = shutil.disk_usage(path.parent).free
            raise AffsupError(
                f"no space to write {path}: {free / 2**20:.0f} MiB free. Make room and call again (train --resume)"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _no_space(error: BaseException) -> bool:
    """torch.save reports a failed write as a RuntimeError raised while the OSError that caused it is handled."""
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
        self._recipe = path / "recipe.toml"
        self._environment = path / "environment.json"
        self._metrics = path / "metrics.jsonl"
        self._result = path / "result.json"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            AffsupError: `path` is not a run folder.
        """
        run = cls(path)
        if not run.exists:
            raise AffsupError(
                f"{path} is not a run folder (no recipe.toml in it); `affsup list runs` names those there are"
            )
        return run

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self._recipe.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self._result.is_file()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the operating system lets go of it even after kill -9.

        Raises:
            AffsupError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise AffsupError(
                f"{self.path} is in use by another process; wait for it, or give this run a --name of its own"
            ) from None

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the resolved recipe."""
        self._write(self._recipe, recipe.to_toml())

    def recipe(self) -> Recipe:
        """Read the resolved recipe."""
        return read_recipe(self._recipe)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Store what the run ran on."""
        self._write(self._environment, json.dumps(environment, indent=2) + "\n")

    def environment(self) -> dict[str, Any]:
        """Read what the run ran on."""
        return self._read(self._environment)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one epoch's line."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Read the epochs' lines; a line cut short by a kill is not one."""
        if not self._metrics.is_file():
            return []
        lines = self._metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of all but the first `epochs` epochs: those after the checkpoint that a run resumes from."""
        kept = self.metrics()[:epochs]
        self._write(self._metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Store the run's numbers and so declare it finished."""
        self._write(self._result, json.dumps(result, indent=2) + "\n")

    def result(self) -> dict[str, Any]:
        """Read the run's numbers.

        Raises:
            AffsupError: the run is not finished.
        """
        if not self.finished:
            raise AffsupError(f"{self.path} is not finished: continue it with `affsup train … --resume`")
        return self._read(self._result)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AffsupError(f"{path} is missing: the run folder is incomplete") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise AffsupError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise AffsupError(f"{path} holds {type(content).__name__}, expected an object")
        return content

    def _write(self, path: Path, text: str) -> None:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def run_folders(root: Path) -> list[RunFolder]:
    """Return every run under `root`, by name."""
    if not root.is_dir():
        return []
    return [run for run in (RunFolder(path) for path in sorted(root.iterdir()) if path.is_dir()) if run.exists]

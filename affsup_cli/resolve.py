"""The folders of data sets, runs and reports, and the run folder or model file that an argument names."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import UsageError, shorten

DATA_DIR = Path("data")
RUNS_DIR = Path("runs")
REPORTS_DIR = Path("reports")
_NAMED = 5  # runs in a message


def run_path(named: str, runs: Path) -> Path:
    """Return the run folder for an argument: a path, also of its recipe.toml, a name under `runs`, or its beginning.

    Raises:
        UsageError: several names begin like this.
    """
    path = Path(named).expanduser()
    if path.name == "recipe.toml":
        return path.parent
    if path.is_dir():
        return path
    if (runs / named).is_dir():
        return runs / named
    found = [name for name in run_names(runs) if name.startswith(named)]
    if len(found) > 1:
        several = f"{', '.join(found[:_NAMED])}{', ...' if len(found) > _NAMED else ''}"
        raise UsageError(f"{shorten(named)} is the beginning of {len(found)} runs: {several}")
    return runs / (found[0] if found else named)


def run_names(runs: Path) -> list[str]:
    """Return the names of the run folders under `runs`, without reading them."""
    if not runs.is_dir():
        return []
    return sorted(path.name for path in runs.iterdir() if not path.name.startswith(".") and path.is_dir())


def model_path(named: str, runs: Path) -> Path:
    """Return the exported model for an argument if it is a file or ends in `.safetensors`, else `run_path`."""
    path = Path(named).expanduser()
    return path if path.is_file() or named.endswith(".safetensors") else run_path(named, runs)

"""Where that lies what a person names on the command line."""

from __future__ import annotations

from pathlib import Path


def run_path(named: str, runs: Path) -> Path:
    """Return the folder that a person means: a folder of that path if there is one, else the run of that name."""
    return Path(named) if Path(named).is_dir() else runs / named


def model_path(named: str, runs: Path) -> Path:
    """Return the file of that path if there is one or it is called as an exported model is, else `run_path`."""
    return Path(named) if Path(named).is_file() or named.endswith(".safetensors") else run_path(named, runs)

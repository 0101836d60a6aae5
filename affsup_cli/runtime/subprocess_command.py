"""The command line and environment of a Python subprocess that runs this installation of affsup."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import affsup_cli


def subprocess_command(module: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a module of this package, and its environment.

    Neither files of the current folder nor another checkout of affsup are imported in its place.
    """
    root = str(Path(affsup_cli.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-P", "-m", module], {**os.environ, "PYTHONPATH": path}

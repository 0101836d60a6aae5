"""This very affsup in a process of its own, wherever it is called from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import affsup_cli


def own_process(module: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a module of this package, and its environment.

    Files of the folder that one happens to be in are no modules there, and another checkout of affsup is not this one.
    """
    root = str(Path(affsup_cli.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-P", "-m", module], {**os.environ, "PYTHONPATH": path}

"""Commands called as a person does, without the others: for those whose own file is what is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.testing import CliRunner, Result


def invoke(command: Callable[..., Any], *arguments: str) -> Result:
    """Call one subcommand; a mistake is `Result.exception`."""
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments)

"""The command `affsup`: its subcommands, error messages and exit codes."""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

import affsup_cli
from affsup_cli.commands.bench import bench
from affsup_cli.commands.check import check
from affsup_cli.commands.compare import compare
from affsup_cli.commands.demo import demo
from affsup_cli.commands.doctor import doctor
from affsup_cli.commands.evaluate import evaluate
from affsup_cli.commands.export import export
from affsup_cli.commands.list import list_
from affsup_cli.commands.predict import predict
from affsup_cli.commands.prepare import prepare
from affsup_cli.commands.report import report
from affsup_cli.commands.search import search
from affsup_cli.commands.show import show
from affsup_cli.commands.sweep import sweep
from affsup_cli.commands.train import train
from affsup_cli.commands.validate import validate
from data_prep.errors import MORE_FILES, AffsupError, AffsupWarning, printable, shorten

app = typer.Typer(
    name="affsup",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich's, with markdown and highlighting, takes longer than all the rest
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prepare)
app.command()(train)
app.command()(evaluate)
app.command()(predict)
app.command()(export)
app.command()(sweep)
app.command()(search)
app.command()(report)
app.command()(compare)
app.command()(check)
app.command()(bench)
app.command(name="list")(list_)
app.command()(show)
app.command()(validate)
app.command()(demo)
app.command()(doctor)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"affsup {affsup_cli.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Affinity Graph Supervision for Visual Recognition (CVPR 2020): its experiments, tables and figures.

    \b
    affsup demo
    affsup prepare cifar10
    affsup train minibatch --dataset cifar10 --arch resnet20
    affsup train relnet --gamma 2
    affsup sweep table3 --only cifar10/resnet20 --seeds 3
    affsup report table3
    """


def main() -> None:
    """Run the command line. Exit 0: done; 1: the work failed; 2: the call was wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same clean-up as after Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" gets a question mark
    warnings.showwarning = _show_warning
    try:
        app()
    except KeyboardInterrupt:
        _leave("interrupted", 1)
    except SystemExit as left:
        if left.code != 130:  # Typer's, for a KeyboardInterrupt
            raise
        _leave("interrupted", 1)
    except AffsupError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:  # such as missing permission or a full disk
        place = f"{shorten(error.filename)}: " if error.filename else ""
        cure = f". {MORE_FILES}" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
        _leave(f"{place}{error.strerror or shorten(error)}{cure}", 1)
    except (ImportError, MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _leave(
            "out of memory: the limit of this shell or job (`ulimit -v` shows it), or the memory of this machine, is "
            f"too small ({shorten(reason)})",
            1,
        )


_NO_MEMORY = re.compile("failed to map segment|[Cc]an(not|'t) allocate memory|out of memory")  # linker, torch, CUDA
_show_other_warning = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print a warning of affsup as one line, and those of libraries as Python does."""
    if issubclass(category, AffsupWarning):
        typer.secho(f"affsup: warning: {printable(str(message))}", fg="yellow", err=True)
    else:
        _show_other_warning(message, category, *place, **options)


def _leave(message: str, code: int) -> NoReturn:
    typer.secho(f"affsup: {printable(message)}", fg="red", err=True)
    sys.exit(code)

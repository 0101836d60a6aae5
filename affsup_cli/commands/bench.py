"""`affsup bench`: how many hours each table takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.options import expand_user
from affsup_cli.resolve import REPORTS_DIR

if TYPE_CHECKING:
    from affsup_cli.bench.run import Bench


def bench(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE|FIGURE", help="Tables and figures to estimate; default: all of the paper's."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")] = "auto",
    out: Annotated[
        Path, typer.Option("--out", dir_okay=False, callback=expand_user, help="CSV file for the numbers.")
    ] = REPORTS_DIR / "bench.csv",
) -> None:
    """Measure the speed of every kind of run, and estimate the hours of each table of the paper on this machine.

    Steps and evaluation run on generated data of the same shape as the real data, so nothing need be downloaded or
    prepared. It takes a few minutes; on a CPU, where the paper's detectors take 10 to 20 seconds per step, one step of
    each is timed. The generated scenes stay in memory: the time to read and decode images of a real data set that
    exceed run.cache_gb is not included.

    \b
    affsup bench
    affsup bench table3 figure5
    affsup bench --device cuda:1 --out bench-h100.csv
    """
    from affsup_cli.bench.run import require_writable, run_bench
    from affsup_cli.reporting.select.spec import paper_names
    from affsup_cli.views.console import console

    require_writable(out)
    names = list(dict.fromkeys(tables or paper_names()))
    with console.status("") as status:
        found = run_bench(names, device, lambda what: status.update(what))
    print_bench(found)
    found.write(out)
    console.print(f"written: {out}", markup=False)


def print_bench(found: Bench) -> None:
    """Print the speeds of the kinds of run, then the hours of the tables."""
    from rich.table import Table

    from affsup_cli.runtime.devices import device_name, has_bf16_instructions
    from affsup_cli.views.console import console
    from data_prep.errors import counted

    def table(*columns: str) -> Table:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        for place, column in enumerate(columns):
            shown.add_column(column, justify="right" if 0 < place < len(columns) - 1 else "left", overflow="fold")
        return shown

    console.print(f"{device_name(found.device)} ({found.device})", style="bold", markup=False)
    if not has_bf16_instructions(found.device):
        console.print("no bf16 instructions: train.precision = bf16 would be slower than float32", style="yellow")
    speeds = table("kind of run", "step", "evaluation", "timed")
    for kind, speed in found.speeds.items():
        timed = f"{counted(speed.steps, 'step')}, {counted(speed.images, 'image')}"
        speeds.add_row(str(kind), _seconds(speed.step_seconds), f"{1 / speed.image_seconds:,.1f} images/s", timed)
    console.print(speeds, soft_wrap=False)
    unit = "GPU-hours" if found.device.type == "cuda" else "hours on this CPU"
    tables = table("table or figure", "runs", unit, "kinds of run")
    for estimate in found.estimates:
        kinds = ", ".join(map(str, estimate.kinds)) if len(estimate.kinds) <= 3 else f"{len(estimate.kinds)} kinds"
        tables.add_row(estimate.table, f"{estimate.runs:,}", _hours(estimate.hours), kinds)
    console.print()
    console.print(tables, soft_wrap=False)
    console.print(
        "For one run after another; a run that several tables share counts in each line, and once in the total."
    )
    if any(kind.task != "minibatch" for kind in found.speeds):
        console.print("For detectors, without reading and decoding the images that exceed run.cache_gb.")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"

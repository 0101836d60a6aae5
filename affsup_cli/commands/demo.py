"""`affsup demo`: the whole way on data that ships with the install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's data, runs, table and figure.")] = Path(
        "demo"
    ),
) -> None:
    """Show the whole way on handwritten digits.

    ResNet-20 with and without L_G, three seeds each; then the table and the curves of error and M. About two minutes on
    two CPU cores. Stopped and called again, it goes on.

    \b
    affsup demo
    """
    from affsup_cli.commands.console import console
    from affsup_cli.commands.embedded import prepare_embedded
    from affsup_cli.commands.report import print_reports
    from affsup_cli.commands.sweeping import plan_sweep, run_sweep, wanted_experiments

    data, runs, reports = out / "data", out / "runs", out / "reports"
    wanted = wanted_experiments("demo")
    prepare_embedded((experiment.recipe for experiment in wanted), data)
    run_sweep(plan_sweep("demo", wanted, data, runs), data, console)
    print_reports(["demo", "demo-mass"], runs, reports)
    console.print(
        "\nDigits are easy: both networks are near 100 % and M ends near 1 with and without L_G. This shows the way, "
        f"not the gain. Where L_G acts is the first epochs of M: open {reports / 'demo-mass.png'}",
        markup=False,
    )
    console.print("Next: `affsup prepare cifar10`, then `affsup train minibatch --dataset cifar10 --arch resnet20`")

"""`affsup demo`: the whole way on data that ships with the install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TABLES = ("demo-relations", "demo")
REPORTS = ("demo", "demo-mass", "demo-relations", "demo-recall", "demo-attention")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's data, runs, tables and figures.")] = Path(
        "demo"
    ),
) -> None:
    """Show the whole way, both halves of the paper.

    Generated scenes: Relation Networks with and without L_G on the attention between object proposals. Handwritten
    digits: ResNet-20 with and without L_G on the mini-batch's similarity graph, three seeds each. Then the tables,
    curves and pictures. About three minutes on two CPU cores. Stopped and called again, it goes on.

    \b
    affsup demo
    """
    from affsup_cli.commands.console import console
    from affsup_cli.commands.embedded import prepare_embedded
    from affsup_cli.commands.report import print_reports
    from affsup_cli.commands.sweep import print_plan, run_plan
    from affsup_cli.sweeps.plan import needed_recipes, plan_sweep, wanted_experiments
    from affsup_cli.sweeps.slots import find_slots

    data, runs, reports = out / "data", out / "runs", out / "reports"
    wanted = wanted_experiments(TABLES)
    prepare_embedded(needed_recipes(wanted), data)
    slots = find_slots("auto")
    plan = plan_sweep(wanted, data, runs, {place.name for place in slots})
    print_plan(plan, "demo", slots)
    run_plan(plan, data, slots)
    print_reports(list(REPORTS), runs, reports)
    console.print(
        "\nDigits are easy: both networks are near 100 % and M ends near 1 with and without L_G; that half shows the "
        "way, not the gain. In the scenes L_G moves the attention of an object to objects of other classes: "
        f"open {reports / 'demo-attention.png'} and {reports / 'demo-recall.png'}",
        markup=False,
    )
    console.print(
        "Next: `affsup prepare cifar10`, then `affsup train minibatch --dataset cifar10 --arch resnet20`; or "
        "`affsup prepare voc07`, then `affsup train relnet --dataset voc07`"
    )

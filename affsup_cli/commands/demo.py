"""`affsup demo`: both halves of the paper on small data that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affsup_cli.options import expand_user

TABLES = ("demo-relations", "demo")
REPORTS = ("demo-relations", "demo-recall", "demo-attention", "demo", "demo-mass", "demo-features")


def demo(
    out: Annotated[
        Path, typer.Option("--out", callback=expand_user, help="Folder for the demo's data, runs, tables and figures.")
    ] = Path("demo"),
) -> None:
    """Train both halves of the paper on small data, and print their tables.

    First generated scenes: Relation Networks with and without L_G on the attention between object proposals. Then
    handwritten digits: ResNet-20 with and without L_G on the similarity graph of a mini-batch. One seed each.

    It needs no download and no GPU, and takes about 200 CPU-seconds. If it is stopped, the same command continues it.

    \b
    affsup demo
    """
    from affsup_cli.commands.report import print_reports
    from affsup_cli.commands.sweep import print_plan, run_plan
    from affsup_cli.runtime.devices import gpus
    from affsup_cli.sweeps.plan import needed_recipes, plan_sweep, wanted_experiments
    from affsup_cli.sweeps.slots import find_slots
    from affsup_cli.views.console import console
    from affsup_cli.views.embedded import prepare_embedded

    data, runs, reports = out / "data", out / "runs", out / "reports"
    wanted = wanted_experiments(TABLES)
    prepare_embedded(needed_recipes(wanted), data)
    slots = find_slots("auto", 1 if gpus() else 2)  # on a CPU networks this small gain little from a second thread
    plan = plan_sweep(wanted, data, runs, {place.name for place in slots})
    print_plan(plan, "demo", slots)
    run_plan(plan, data, slots)
    print_reports(list(REPORTS), runs, reports)
    console.print(f"\n{findings(runs)}\n", markup=False)
    pictures = ", ".join(str(reports / f"{name}.png") for name in ("demo-attention", "demo-recall", "demo-features"))
    console.print(f"Pictures: {pictures}", markup=False)
    console.print(
        "Next: `affsup prepare cifar10`, then `affsup train minibatch --dataset cifar10 --arch resnet20`; or "
        "`affsup prepare voc07`, then `affsup train relnet --dataset voc07`"
    )


def findings(runs: Path) -> str:
    """Return what the numbers of the finished demo say, in words."""
    from affsup_cli.reporting.select.experiments import experiments
    from affsup_cli.reporting.select.spec import load_spec
    from affsup_cli.runs.index import RunIndex
    from affsup_cli.runs.results import read_train_result

    index = RunIndex(runs)
    folders = {each.key: index.find(each.recipe) for name in TABLES for each in experiments(load_spec(name))}
    metrics = {key: read_train_result(folder).metrics for key, folder in folders.items() if folder}
    without, supervised = metrics["shapes/relnet"], metrics["shapes/affinity"]

    def change(metric: str) -> str:
        return f"{without[f'test_{metric}']:.1%} without L_G, {supervised[f'test_{metric}']:.1%} with it"

    return (
        "Generated scenes. Mean attention of the test objects that hold at least an even share of the graph's weight, "
        f"on objects of other classes: {change('attention_other_class')}. "
        f"On others of its own class: {change('attention_same_class')}. "
        f"Recall of the annotated relations at 50 pairs: {change('recall@50')}. "
        f"mAP@0.5: {change('map_50')}.\n"
        f"Digits. M of a mini-batch: {metrics['digits/resnet20/base']['test_mass']:.3f} without L_G, "
        f"{metrics['digits/resnet20/affinity']['test_mass']:.3f} with it; accuracy after 5 epochs: "
        f"{metrics['digits/resnet20/base']['test_accuracy']:.1%} and "
        f"{metrics['digits/resnet20/affinity']['test_accuracy']:.1%}.\n"
        "All of one seed. small-table3 asks whether L_G raises the accuracy of classifiers, with 10 pairs of runs on "
        "CIFAR-10 and on CIFAR-100."
    )

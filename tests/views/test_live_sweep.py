from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.sweeps.messages import EpochEnded
from affsup_cli.sweeps.plan import PlannedRun
from affsup_cli.sweeps.schedule import Outcome
from affsup_cli.sweeps.speeds import Speeds
from affsup_cli.training.observers import Progress
from affsup_cli.views import live_sweep
from affsup_cli.views.live_sweep import SweepView


def planned_runs(count: int) -> list[PlannedRun]:
    recipes = [load_recipe("minibatch", {"seed": seed, "train.epochs": 10}) for seed in range(count)]
    folders = [RunFolder(Path("runs") / str(seed)) for seed in range(count)]
    return [
        PlannedRun(("cell",), recipe, None, run, "missing", None, 0)
        for recipe, run in zip(recipes, folders, strict=True)
    ]


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, force_terminal=terminal, width=120, soft_wrap=True, color_system=None), shown


def drive(view: SweepView, of: list[PlannedRun]) -> None:
    """Two run, one of them with a validated epoch behind it; one has failed, two wait."""
    first, second, third, *_ = of
    view.started(first, "cuda:0")
    view.started(second, "cuda:1")
    view.started(third, "cuda:1")
    view.epoch_ended(first, EpochEnded({"epoch": 1, "seconds": 6.0, "val_accuracy": 0.75}))
    view.progressed(first, Progress(2, 10, 1, 4, {"train_loss": 0.5, "train_mass": 0.125}, 90.0, 50.0))
    view.ended(third, Outcome("failed", "diverged"))
    view.ticked()


def test_off_a_terminal_there_is_a_line_for_each_beginning_and_end_and_a_summary_now_and_then() -> None:
    place, shown = console(terminal=False)
    of = planned_runs(5)
    with SweepView(place, of, Speeds(), parallel=2) as view:
        drive(view, of)
        assert shown.getvalue().splitlines() == [
            "cell seed 0 begins on cuda:0: runs/0",
            "cell seed 1 begins on cuda:1: runs/1",
            "cell seed 2 begins on cuda:1: runs/2",
            "cell seed 2 failed: diverged",
        ]
        view._shown -= live_sweep.SUMMARY_SECONDS
        view.ticked()
    # 50 s of the first; 60 s of the second and of each that waits, as the first's epoch took 6 s; two at a time.
    assert shown.getvalue().splitlines()[4:] == ["0 done · 2 running · 2 waiting · 1 failed · 1:55 left · epoch 2/10"]


def test_on_a_terminal_one_table_shows_all_that_run() -> None:
    place, shown = console(terminal=True)
    of = planned_runs(5)
    with SweepView(place, of, Speeds(), parallel=2) as view:
        view._shown -= live_sweep.REDRAW_SECONDS
        drive(view, of)
        text = shown.getvalue()
    rows = [line.split() for line in text.splitlines()]
    assert ["cell", "seed", "0", "cuda:0", "epoch", "2/10", "25%", "0:50", "0.125", "val", "75.00%"] in rows
    assert ["cell", "seed", "1", "cuda:1", "starting"] in rows
    assert "0 done · 2 running · 2 waiting · 1 failed" in text


def test_a_run_of_another_process_is_named_once_and_counted_apart_until_it_begins_or_ends_here() -> None:
    place, shown = console(terminal=False)
    first, second, _ = of = planned_runs(3)
    with SweepView(place, of, Speeds(), parallel=2) as view:
        view.run_elsewhere(first)
        view.run_elsewhere(first)
        view.started(second, "cuda:0")
        view.run_elsewhere(second)
        view._shown -= live_sweep.SUMMARY_SECONDS
        view.ticked()
        view.started(second, "cuda:1")
        view.ended(first, Outcome("stopped"))
        view._shown -= live_sweep.SUMMARY_SECONDS
        view.ticked()
    assert shown.getvalue().splitlines() == [
        "cell seed 0 is run by another process; waiting for it: runs/0",
        "cell seed 1 begins on cuda:0: runs/1",
        "cell seed 1 is run by another process; waiting for it: runs/1",
        "0 done · 0 running · 1 waiting · 2 run by another process · 0 failed · – left",
        "cell seed 1 begins on cuda:1: runs/1",
        "cell seed 0 stopped: it begins anew next time",
        "0 done · 1 running · 1 waiting · 0 failed · – left",
    ]

"""`affsup search`: the values of a recipe's fields that do best on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_field, complete_recipe
from affsup_cli.options import DataDir, Device, OutDir, RunsDir, Set
from affsup_cli.resolve import DATA_DIR, REPORTS_DIR, RUNS_DIR

if TYPE_CHECKING:
    from affsup_cli.runs.folder import RunFolder
    from affsup_cli.sweeps.search import Search, Trial
    from affsup_cli.views.live_training import LiveLine


def search(
    recipe: Annotated[
        str,
        typer.Argument(help="A shipped recipe (`affsup list recipes`) or a TOML file.", autocompletion=complete_recipe),
    ],
    trials: Annotated[int, typer.Option(min=1, help="Number of runs, with those of earlier calls.")],
    fields: Annotated[
        list[str],
        typer.Option(
            "--field",
            metavar="KEY=LOW..HIGH[:log]|KEY=A,B",
            help="A field and its range, or its values. Repeatable.",
            autocompletion=complete_field,
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(help="Metric of the validation split to maximise, val_….  [default: val_accuracy or val_map_all]"),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the search; default: made from the recipe and the searched fields.")
    ] = None,
    device: Device = None,
    settings: Set = None,
    out: OutDir = REPORTS_DIR,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Search for the values of a recipe's fields that do best on the validation split.

    Each trial is an ordinary run; Optuna chooses its values from the trials before it. The test split is never used to
    choose. The same command continues a stopped search; started on another GPU at the same time, it shares the trials.
    A larger --trials adds trials. A trial with an infinite loss, or that lacks memory, counts as one of the worst.

    Each trial has one seed: repeat the best ones with several, as `affsup sweep --grid` does. Optuna reads the file
    search.db in the folder of the runs, too. `pip install 'affsup[search]'` installs what it takes.

    \b
    affsup search minibatch --field affinity.lambda=0.01..1:log --trials 20
    affsup search minibatch --field affinity.gamma=0,2,4 --trials 3
    affsup search relnet --set data.name=vg --field affinity.gamma=1..5 --trials 9
    """
    from affsup_cli.recipe import load_recipe, parse_override
    from affsup_cli.runtime.devices import resolve_device, slow_bf16
    from affsup_cli.runtime.stop import Stopped, imports_uninterrupted
    from data_prep.errors import AffsupError

    with imports_uninterrupted():
        from affsup_cli.sweeps.search import Search, parse_dimension
        from affsup_cli.views.console import console, print_warning
        from affsup_cli.views.embedded import prepare_embedded
        from data_prep.errors import counted
    space = [parse_dimension(text) for text in fields]
    extra = dict(parse_override(text) for text in settings or [])
    if device is not None:
        extra["run.device"] = device
    base = load_recipe(recipe, extra)
    if warning := slow_bf16(base.train.precision, resolve_device(base.run.device)):
        print_warning(warning)
    prepare_embedded([base], data)
    made = Search(recipe, space, extra, metric, data, runs, study)
    console.print(f"study {made.name} in {runs}", markup=False)

    def observers(number: int, run: RunFolder) -> list[LiveLine]:
        from affsup_cli.views.live_training import LiveLine

        console.print(f"trial {number}: run folder {run.path}", markup=False)
        return [LiveLine(console, f"trial {number}")]

    try:
        done = made.run(trials, observers, lambda trial, reason: _print_trial(made, trial, reason))
    except Stopped:
        raise AffsupError("interrupted: the run of the trial is saved, and the same command continues") from None
    _print_trials(made, out)
    if done < trials:
        console.print(f"{counted(trials - done, 'trial')} left to another call that runs them now", markup=False)


def _print_trial(made: Search, trial: Trial, reason: str) -> None:
    from affsup_cli.views.console import console, metric_text
    from affsup_cli.views.search_table import value_text

    values = ", ".join(f"{name} = {value_text(value)}" for name, value in trial.values.items())
    outcome = f"failed: {reason}" if trial.score is None else f"{made.metric} {metric_text(made.metric, trial.score)}"
    console.print(f"trial {trial.number}: {values}: {outcome}", markup=False)


def _print_trials(made: Search, out: Path) -> None:
    from affsup_cli.views.console import console
    from affsup_cli.views.search_table import search_table, write_trials

    results = made.results()
    console.print()
    console.print(search_table(made.name, made.metric, made.fields, results))
    path = out / f"search-{made.name}.csv"
    write_trials(path, made.metric, made.fields, results)
    best = results[0] if results else None
    if best and best.run:
        console.print(f"the best is trial {best.number}: `affsup show {best.run.path}`", markup=False)
    console.print(f"written: {path}", style="green", markup=False)

"""The run that another builds on: given by the user, or found among the runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from affsup_cli.recipe import RECIPE_OF_TASK, Recipe, recipe_kind
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.index import RunIndex
from affsup_cli.tasks.launch import data_digest
from data_prep.errors import UsageError


@dataclass(frozen=True)
class Prerequisite:
    """A finished run that another builds on.

    Attributes:
        path: its run folder, or the exported file.
        data: digest of the data set that it was trained on.
    """

    path: Path
    data: str


def recipe_of_network(recipe: str, named: Path) -> Recipe:
    """Return the recipe of the trained network that the user gave for `recipe` to build on.

    Raises:
        UsageError: `recipe` builds on no other run, or `named` is of another task than expected.
        AffsupError: `named` is damaged.
    """
    field = recipe_kind(recipe).model_fields.get("network")
    if field is None:
        builders = [task for task, kind in RECIPE_OF_TASK.items() if "network" in kind.model_fields]
        raise UsageError(f"--pretrained is for {', '.join(builders)}: {recipe} builds on no other run")
    found = open_trained(named).recipe
    if type(found) is not field.annotation:
        (wanted,) = (task for task, kind in RECIPE_OF_TASK.items() if kind is field.annotation)
        raise UsageError(f"{named} is a run of {found.task}; --pretrained takes one of {wanted}")
    return found


def find_network(recipe: Recipe, named: Path | None, data_dir: Path, runs_dir: Path) -> Prerequisite | None:
    """Find the run of the recipe's `prerequisite`; None if it has none.

    Args:
        recipe: of the run to be trained.
        named: the run folder or exported file that the user gave.
        data_dir: where the data sets are prepared; only runs on their present content are found.
        runs_dir: the folder of runs that is searched.

    Raises:
        UsageError: it has not been trained, or one is named for a recipe that builds on none.
    """
    wanted = recipe.prerequisite()
    if wanted is None:
        if named is not None:
            raise UsageError(f"--pretrained {named}: {recipe.name} as it is set builds on no other run")
        return None
    if named is not None:
        return Prerequisite(named, open_trained(named).environment["data"]["digest"])
    digest = data_digest(wanted, data_dir)
    found = RunIndex(runs_dir).find(wanted, "train", digest)
    if found is None or not found.finished:
        state = f"is unfinished in {found.path}" if found else f"has not been trained in {runs_dir}"
        raise UsageError(
            f"{recipe.name} builds on a run of {wanted.label()} (its fields [network]), which {state}: "
            f"`affsup train {wanted.name} --dataset {wanted.flat()['data.name']}` with the same fields trains it, "
            "--pretrained RUN names another, `affsup sweep` of a table trains both"
        )
    return Prerequisite(found.path, found.environment()["data"]["digest"])

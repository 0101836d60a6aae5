"""Completion of names in the shell: `affsup --install-completion` switches it on.

Each function returns the names that begin with the typed text. It imports large modules when it is called, so that
`affsup --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a run under --runs."""
    from affsup_cli.resolve import RUNS_DIR, run_names

    return _beginning(run_names(Path(context.params.get("runs") or RUNS_DIR)), incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Complete the name of a recipe."""
    from affsup_cli.recipe import recipe_names

    return _beginning(recipe_names(), incomplete)


def complete_table(incomplete: str) -> list[str]:
    """Complete the name of a table or figure, or `all`."""
    from affsup_cli.reporting.select.spec import report_names

    return _beginning([*report_names(), "all"], incomplete)


def complete_dataset(incomplete: str) -> list[str]:
    """Complete the name of a data set."""
    import data_prep

    return _beginning(data_prep.datasets(), incomplete)


def complete_field(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a field of the recipe that the command names, or of any recipe, with the equals sign."""
    from affsup_cli.recipe import field_help, recipe_kind, recipe_names

    named = context.params.get("recipe")
    names = [named] if named in recipe_names() else recipe_names()
    fields = dict.fromkeys(f"{field}=" for name in names for field in field_help(recipe_kind(name)))
    return _beginning(fields, incomplete)


def complete_anything(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a recipe, a table, a figure, a data set or a run."""
    tables = [name for name in complete_table(incomplete) if name != "all"]
    named = (complete_recipe(incomplete), tables, complete_dataset(incomplete), complete_run(context, incomplete))
    return list(dict.fromkeys(name for names in named for name in names))


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]

"""MkDocs hook: reference pages written from the code, in place of the marks `<!-- generated: ... -->` in docs/."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

import data_prep
from affsup_cli.app import app
from affsup_cli.recipe import RECIPE_OF_TASK, Recipe, Section, field_help, load_recipe, recipe_names
from affsup_cli.reporting.select.experiments import experiments
from affsup_cli.reporting.select.spec import load_spec, report_names

_MARK = re.compile(r"<!-- generated: (.+?) -->")
_READING = re.compile(r"(?:docs/paper-departures\.md)?#(reading-(\d+))")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is generated in the place of each mark."""
    return _MARK.sub(lambda mark: "\n".join(GENERATED[mark[1]]()), markdown)


def commands() -> Iterator[str]:
    """Every subcommand: what it does, its examples, arguments and options."""
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        context = command.make_context(name, [], resilient_parsing=True)
        prose, _, examples = inspect.cleandoc(command.help).partition("\b\n")
        yield f"\n## affsup {name}\n\n{prose.strip()}\n\n```\n{examples.strip()}\n```\n"
        yield "| argument or option | meaning |\n|---|---|"
        for parameter in command.params:
            written, meaning = parameter.get_help_record(context) or (parameter.human_readable_name, "")
            yield f"| `{_cell(written)}` | {_cell(_text(meaning))} |"


def recipes() -> Iterator[str]:
    """Every shipped recipe: what it trains, and every field with its value and meaning."""
    for name in recipe_names():
        recipe = load_recipe(name)
        kind, help_of, values = type(recipe), field_help(type(recipe)), recipe.flat()
        yield f"\n## {name}\n\n{_text(inspect.getdoc(kind) or '')}\n"
        for section, intended in _sections(kind):
            prefix = f"{section}." if section else ""
            keys = [key for key in values if key.startswith(prefix) and "." not in key.removeprefix(prefix)]
            yield f"\n{_text(intended)}\n\n| field | value | meaning |\n|---|---|---|"
            yield from (f"| `{key}` | `{_value(values[key])}` | {_cell(_text(help_of[key]))} |" for key in keys)
        if recipe.prerequisite() is not None:
            yield "\n`[network]` holds the whole recipe of that run, such as `network.affinity.gamma`.\n"


def kinds() -> Iterator[str]:
    """Every task, and the class that holds its fields."""
    yield "| `task` | what it trains |\n|---|---|"
    yield from (f"| `{task}` | {_text(inspect.getdoc(kind) or '')} |" for task, kind in RECIPE_OF_TASK.items())


def tables() -> Iterator[str]:
    """Every table and figure: its name, title, data sets and runs."""
    yield "| name | what it shows | data sets | runs |\n|---|---|---|--:|"
    for name in report_names():
        spec = load_spec(name)
        wanted = experiments(spec)
        sets = ", ".join(dict.fromkeys(str(each.recipe.flat()["data.name"]) for each in wanted))
        yield f"| `{name}` | {_cell(spec.title)} | {sets} | {len(wanted)} |"


def data_sets() -> Iterator[str]:
    """Every data set: its name, what it is, and its official images."""
    yield "| name | what it is | training images | test images |\n|---|---|--:|--:|"
    for name, dataset in data_prep.datasets().items():
        counts = dataset.official_counts
        yield f"| `{name}` | {dataset.summary} | {counts['train']:,} | {counts['test']:,} |"


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "recipes": recipes,
    "tasks": kinds,
    "tables": tables,
    "data sets": data_sets,
}


def _sections(kind: type[Recipe]) -> Iterator[tuple[str, str]]:
    """The sections of a kind of recipe with their docstrings, those of another run's recipe left out."""
    yield "", "Fields without a section:"
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section) and not issubclass(section, Recipe):
            yield name, inspect.getdoc(section) or ""


def _value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _text(text: str) -> str:
    """Text of the code as Markdown: references to readings become links."""
    return _READING.sub(r"[reading \2](paper-departures.md#\1)", " ".join(text.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

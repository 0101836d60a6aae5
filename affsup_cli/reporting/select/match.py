"""Which runs stand in which cell.

A run belongs to a cell if it has the fields that define the cell (`Recipe.defines_cell`), such as its data set. Where
it departs from the cell's recipe otherwise (fewer epochs, a part of the data) it may still fill the cell, under a
footnote. Runs that stand together (in a cell, a column, a block) share one set of departures, the data, the file of
pretrained weights and the data of the networks that they build on; those of one cell also build on one network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from affsup_cli.recipe import OBSERVING, differences, trains_the_same
from affsup_cli.reporting.render.document import Footnotes
from affsup_cli.reporting.select.experiments import Cell
from affsup_cli.runs.index import Run, RunData, TrainedRun

_NAMES_SHOWN = 6

_Alike = tuple[tuple[str, ...], str, str | None, str | None]
"""What runs that stand together share: departures, data digest, checksum of pretrained weights, network's data digest.

Runs that build on no network have None of the last, and stand beside any."""


@dataclasses.dataclass
class Group:
    """Runs that may stand side by side.

    Attributes:
        departures: how all of them depart from their cells' recipes, in words; empty if they are faithful.
        data: the data set of all of them.
        epochs: how long all of them trained.
        runs: by cell, then by seed.
    """

    departures: tuple[str, ...]
    data: RunData
    epochs: int
    runs: dict[str, dict[int, TrainedRun]] = dataclasses.field(default_factory=dict)

    @property
    def members(self) -> list[TrainedRun]:
        """All its runs, each once."""
        return list({run.folder.name: run for by_seed in self.runs.values() for run in by_seed.values()}.values())

    def common_seed(self) -> int:
        """Return the seed that the most cells have a run of, the lowest of equals: pictures side by side are of one."""
        seeds = sorted({seed for by_seed in self.runs.values() for seed in by_seed})
        return max(seeds, key=lambda seed: (sum(seed in by_seed for by_seed in self.runs.values()), -seed))

    def within(self, other: Group) -> bool:
        """Return whether all its runs are among the more runs of another."""
        places = [(name, seed, run) for name, by_seed in self.runs.items() for seed, run in by_seed.items()]
        shared = all(other.runs.get(name, {}).get(seed) is run for name, seed, run in places)
        return shared and len(other.members) > len(self.members)

    def rank(self) -> tuple[Any, ...]:
        """Return what groups are sorted by, the best first."""
        return (
            bool(self.departures),
            -len(self.runs),
            -self.epochs,
            -len(self.members),
            self.data.official is False,
            self.departures,
            self.data.digest,
        )


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Runs that were left out for one reason; `departures` are those of the runs, where they are the reason."""

    reason: str
    departures: tuple[str, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The group that fills some cells (None: there are no runs), and what was left out."""

    group: Group | None
    left_out: tuple[LeftOut, ...]

    def remarks(self, footnotes: Footnotes) -> list[str]:
        """Return a line for each reason to leave runs out; departures stand in it as the mark of their footnote."""
        return [_left_out_text(left_out, footnotes) for left_out in self.left_out]


def select_runs(
    cells: Mapping[str, Cell],
    trained: Iterable[TrainedRun],
    fault: Callable[[TrainedRun], str | None],
    observing: frozenset[str] = OBSERVING,
) -> Selection:
    """Choose the runs that fill `cells` together.

    Faithful runs come first; then those that fill the most cells, trained the longest, are the most. Of several runs of
    one seed the first that started counts.

    Args:
        cells: the cells, by the name that `Group.runs` gives them.
        trained: the runs there are, by the time they started.
        fault: says why a run cannot be used; None if it can.
        observing: fields that may differ without being a departure.
    """
    groups: dict[_Alike, Group] = {}
    left_out: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for run in trained:
        data = run.environment.data
        for name, cell in cells.items():
            departed = departures(cell, run, observing)
            if departed is None:
                continue
            if reason := fault(run):
                _add(left_out, (reason, ()), run)
                continue
            network = run.environment.network
            alike = departed, data.digest, run.environment.weights, network.data.digest if network else None
            group = groups.setdefault(alike, Group(departed, data, run.recipe.train.epochs))
            of_cell = group.runs.setdefault(name, {})
            if other := next((held for held in of_cell.values() if not _on_one_network(held, run)), None):
                _add(left_out, (f"stands on another part A than {other.folder.name}", ()), run)
                continue
            first = of_cell.setdefault(run.recipe.seed, run)
            if first is not run:
                _add(left_out, (f"repeats {first.folder.name}", ()), run)
    _lend_runs(groups)
    # What stands whole in a larger group needs no place of its own: faithful base runs beside others of another lambda.
    standing = [group for group in groups.values() if not any(group.within(other) for other in groups.values())]
    ranked = sorted(standing, key=Group.rank)
    shown = {run.folder.name for run in ranked[0].members} if ranked else set()
    for group in ranked[1:]:
        for run in (run for run in group.members if run.folder.name not in shown):
            reason = "does not stand beside the runs shown"
            if not group.departures:
                reason += f": other data, digest {group.data.digest[:8]}, or a network of other weights or data"
            _add(left_out, (reason, group.departures), run)
    return Selection(
        ranked[0] if ranked else None, tuple(LeftOut(*why, tuple(names)) for why, names in left_out.items())
    )


def _lend_runs(groups: Mapping[_Alike, Group]) -> None:
    """Let runs stand beside others that depart in fields which they do not have: without L_G there is no lambda."""
    for (words, *data, network), group in groups.items():
        for (fewer, *lent_data, lent_network), lender in groups.items():
            alike = lent_data == data and lent_network in (None, network)
            if lender is group or not alike or not set(fewer) <= set(words):
                continue
            fields = [word.partition(" = ") for word in words if word not in fewer]
            for name, by_seed in lender.runs.items():
                for seed, run in by_seed.items():
                    if all(is_field and field not in run.settings for field, is_field, _ in fields):
                        group.runs.setdefault(name, {}).setdefault(seed, run)


def _on_one_network(first: Run, second: Run) -> bool:
    networks = first.environment.network, second.environment.network
    return len({network and network.digest for network in networks}) == 1


def departures(cell: Cell, run: Run, observing: frozenset[str]) -> tuple[str, ...] | None:
    """Say how `run` departs from the cell's recipe: an empty tuple if it is faithful, None if it is of another cell."""
    changed = changed_fields(cell, run, observing)
    if changed is None:
        return None
    words = [f"{field} = {_literal(found)} instead of {_literal(wanted)}" for field, (wanted, found) in changed.items()]
    data, network = run.environment.data, run.environment.network
    if not data.complete:
        limited = data.limit is not None
        words.append(f"{data.limit:,} of the training images" if limited else "a part of the data set")
    if network and not network.data.complete:
        words.append(f"network.data.name = {network.data.name} (a part of it, digest {network.data.digest[:8]})")
    return tuple(words)


def changed_fields(cell: Cell, run: Run, observing: frozenset[str] = OBSERVING) -> dict[str, tuple[Any, Any]] | None:
    """Return the fields in which `run` departs from the cell's recipe, both values; None if it is of another cell."""
    changed = differences(cell.settings, run.settings)
    changed = {field: values for field, values in changed.items() if not trains_the_same([field], observing)}
    return None if any(cell.recipe.defines_cell(field) for field in changed) else changed


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _add(
    left_out: dict[tuple[str, tuple[str, ...]], list[str]], why: tuple[str, tuple[str, ...]], run: TrainedRun
) -> None:
    names = left_out.setdefault(why, [])
    if run.folder.name not in names:
        names.append(run.folder.name)


def _left_out_text(left_out: LeftOut, footnotes: Footnotes) -> str:
    names = left_out.names
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"left out ({left_out.reason}{footnotes.mark_departures(left_out.departures)}): {shown}{more}"

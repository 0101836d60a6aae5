"""Selection of the runs that fill each cell of a table.

A run belongs to a cell if it has the fields that define the cell (`Recipe.defines_cell`), such as its data set. Where
it departs from the cell's recipe otherwise (fewer epochs, a part of the data) it may still fill the cell, with a
footnote. The runs that are compared (of a cell, a column or a block) have the same departures, the same data, the same
pretrained weights and the same data of the networks that they build on; the runs of one cell also build on one network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from affsup_cli.recipe import RECORDING_FIELDS, SceneRecipe, differences, trains_the_same
from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.select.experiments import Cell
from affsup_cli.runs.index import Run, RunData, TrainedRun

_MAX_NAMES = 6

_GroupKey = tuple[tuple[str, ...], str, str | None, str | None]
"""Key of a group: departures, data digest, checksum of pretrained weights, data digest of the network.

The last is None for runs that build on no network; they can be compared with runs on any network."""


@dataclasses.dataclass
class Group:
    """Runs that may be compared with each other.

    Attributes:
        departures: how all of them depart from their cells' recipes, as text; empty if they follow the recipes.
        data: the data set of all of them.
        epochs: the number of epochs of all of them.
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
        """Return the seed that most cells have a run of, the lowest of several: panels of a figure show one seed."""
        seeds = sorted({seed for by_seed in self.runs.values() for seed in by_seed})
        return max(seeds, key=lambda seed: (sum(seed in by_seed for by_seed in self.runs.values()), -seed))

    def is_part_of(self, other: Group) -> bool:
        """Return whether its runs are a proper subset of those of `other`."""
        places = [(name, seed, run) for name, by_seed in self.runs.items() for seed, run in by_seed.items()]
        shared = all(other.runs.get(name, {}).get(seed) is run for name, seed, run in places)
        return shared and len(other.members) > len(self.members)

    def rank(self) -> tuple[Any, ...]:
        """Return the sort key: the best group comes first."""
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
    """Runs that were left out for one reason; `departures` are set where these are the reason."""

    reason: str
    departures: tuple[str, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SelectedRuns:
    """The group of runs that fills some cells (None without runs), and the runs that were left out."""

    group: Group | None
    left_out: tuple[LeftOut, ...]

    def remarks(self, footnotes: Footnotes) -> list[str]:
        """Return one line for each reason to leave runs out; departures are shown as the mark of their footnote."""
        return [_left_out_text(left_out, footnotes) for left_out in self.left_out]


def select_runs(
    cells: Mapping[str, Cell],
    trained: Iterable[TrainedRun],
    fault: Callable[[TrainedRun], str | None],
    observing: frozenset[str] = RECORDING_FIELDS,
) -> SelectedRuns:
    """Choose comparable runs that fill `cells`.

    Runs that follow the recipes come first, then the group that fills the most cells, trained for the most epochs, and
    has the most runs. Of several runs with the same seed the first one started is taken.

    Args:
        cells: the cells, by the name that `Group.runs` gives them.
        trained: the finished runs, by start time.
        fault: returns why a run cannot be used, None if it can.
        observing: fields that may differ without being a departure.
    """
    groups: dict[_GroupKey, Group] = {}
    left_out: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for run in trained:
        data = run.environment.data
        for name, cell in cells.items():
            departed = departures(cell, run, observing)
            if departed is None:
                continue
            if reason := fault(run):
                _leave_out(left_out, (reason, ()), run)
                continue
            network = run.environment.network
            key = departed, data.digest, run.environment.weights, network.data.digest if network else None
            group = groups.setdefault(key, Group(departed, data, run.recipe.train.epochs))
            of_cell = group.runs.setdefault(name, {})
            if other := next((held for held in of_cell.values() if not _same_network(held, run)), None):
                _leave_out(left_out, (f"builds on another part A than {other.folder.name}", ()), run)
                continue
            first = of_cell.setdefault(run.recipe.seed, run)
            if first is not run:
                _leave_out(left_out, (f"repeats {first.folder.name}", ()), run)
    _share_runs(groups)
    # A group that is part of a larger one is not listed: base runs are also part of the group with another lambda.
    standing = [group for group in groups.values() if not any(group.is_part_of(other) for other in groups.values())]
    ranked = sorted(standing, key=Group.rank)
    shown = {run.folder.name for run in ranked[0].members} if ranked else set()
    for group in ranked[1:]:
        for run in (run for run in group.members if run.folder.name not in shown):
            reason = "not comparable with the runs shown"
            if not group.departures:
                reason += f": other data, digest {group.data.digest[:8]}, or a network of other weights or data"
            _leave_out(left_out, (reason, group.departures), run)
    return SelectedRuns(
        ranked[0] if ranked else None, tuple(LeftOut(*why, tuple(names)) for why, names in left_out.items())
    )


def _share_runs(groups: Mapping[_GroupKey, Group]) -> None:
    """Add runs to groups that depart only in fields which these runs do not have: a base network has no lambda."""
    for (words, *data, network), group in groups.items():
        for (fewer, *lent_data, lent_network), lender in groups.items():
            same_data = lent_data == data and lent_network in (None, network)
            if lender is group or not same_data or not set(fewer) <= set(words):
                continue
            fields = [word.partition(" = ") for word in words if word not in fewer]
            for name, by_seed in lender.runs.items():
                for seed, run in by_seed.items():
                    if all(is_field and field not in run.settings for field, is_field, _ in fields):
                        group.runs.setdefault(name, {}).setdefault(seed, run)


def _same_network(first: Run, second: Run) -> bool:
    if isinstance(second.recipe, SceneRecipe) and second.recipe.separate_network_per_seed:
        return True
    networks = first.environment.network, second.environment.network
    return len({network and network.digest for network in networks}) == 1


def departures(cell: Cell, run: Run, observing: frozenset[str]) -> tuple[str, ...] | None:
    """Return how `run` departs from the cell's recipe: empty if nowhere, None if it belongs to another cell."""
    changed = changed_fields(cell, run, observing)
    if changed is None:
        return None
    words = [
        f"{field} = {_value_text(found)} instead of {_value_text(wanted)}" for field, (wanted, found) in changed.items()
    ]
    data, network = run.environment.data, run.environment.network
    if not data.complete:
        limited = data.limit is not None
        words.append(f"{data.limit:,} of the training images" if limited else "a part of the data set")
    if network and not network.data.complete:
        words.append(f"network.data.name = {network.data.name} (a part of it, digest {network.data.digest[:8]})")
    return tuple(words)


def changed_fields(
    cell: Cell, run: Run, observing: frozenset[str] = RECORDING_FIELDS
) -> dict[str, tuple[Any, Any]] | None:
    """Return the fields that differ from the cell's recipe with both values; None if `run` belongs to another cell."""
    changed = differences(cell.settings, run.settings)
    changed = {field: values for field, values in changed.items() if not trains_the_same([field], observing)}
    return None if any(cell.recipe.defines_cell(field) for field in changed) else changed


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _leave_out(
    left_out: dict[tuple[str, tuple[str, ...]], list[str]], why: tuple[str, tuple[str, ...]], run: TrainedRun
) -> None:
    names = left_out.setdefault(why, [])
    if run.folder.name not in names:
        names.append(run.folder.name)


def _left_out_text(left_out: LeftOut, footnotes: Footnotes) -> str:
    names = left_out.names
    shown = ", ".join(sorted(names)[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"left out ({left_out.reason}{footnotes.mark_departures(left_out.departures)}): {shown}{more}"

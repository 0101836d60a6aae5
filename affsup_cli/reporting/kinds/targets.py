"""Supervision targets of one object, drawn on a test image (figure 9)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.kinds.relations import examples_fault
from affsup_cli.reporting.render.document import DASH, Content, Source, Table, csv_bytes
from affsup_cli.reporting.render.figure import new_figure, png_bytes, style
from affsup_cli.reporting.render.relation_picture import draw_relations
from affsup_cli.reporting.select.experiments import spec_cells
from affsup_cli.reporting.select.match import select_runs
from affsup_cli.reporting.select.spec import TargetsSpec
from affsup_cli.runs.examples import Example, read_examples
from affsup_cli.runs.index import RunIndex
from data_prep.errors import shorten

_CSV_COLUMNS = ("image_id", "image", "target", "object", "class", "role", "x1", "y1", "x2", "y2")
_WIDTH = 4.4  # inches of a picture
_CAPTION = (
    "Blue: the reference a. Orange: the objects b with T[a, b] = 1. Of the images that a run stores: the one with the "
    "fewest objects that has two objects of one class and one of another class; in it the largest object of such a "
    "class."
)


@dataclasses.dataclass(frozen=True)
class _ChosenObject:
    """An image and one of its objects."""

    example: Example
    reference: int
    classes: tuple[str, ...]

    def related(self, target: str) -> list[int]:
        """Return the objects that the reference is related to."""
        labels = self.example.gt_labels
        others = [each for each in range(len(labels)) if each != self.reference]
        if target == "different-instance":
            return others
        return [each for each in others if labels[each] != labels[self.reference]]

    def name(self, each: int) -> str:
        """Return the class of an object."""
        return shorten(self.classes[int(self.example.gt_labels[each])])


def build_targets(spec: TargetsSpec, runs: RunIndex) -> Content:
    """Draw the targets on an image that a run stores; the network's weights have no influence.

    `.csv` has one line for each target and object; `.png` is the picture.
    """
    (cell,) = spec_cells(spec)
    selection = select_runs({cell.key: cell}, runs.trained, examples_fault)
    group = selection.group
    footnotes = Footnotes()
    if group is None:
        return Content(_CAPTION, (), (), tuple(selection.remarks(footnotes)), (), {})
    run = group.runs[cell.key][group.common_seed()]
    choice = _choose_object(*read_examples(run.folder.examples))
    if choice is None:
        nothing = f"{run.folder.name} stores no image with two objects of one class and one of another class"
        return Content(_CAPTION, (), (), (*selection.remarks(footnotes), nothing), (), {})
    marks = footnotes.mark_departures((), group.data)
    drawn = footnotes.lines()
    notes = selection.remarks(footnotes)
    example = choice.example
    return Content(
        caption=f"Image {shorten(example.name)}, reference {choice.name(choice.reference)}. {_CAPTION}",
        tables=(_table(spec, choice, Source("the image", (run,), marks), marks),),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=(run,),
        files={".csv": csv_bytes(_csv_rows(spec, choice), _CSV_COLUMNS), ".png": _draw(spec, choice, drawn)},
    )


def _choose_object(classes: tuple[str, ...], examples: Sequence[Example]) -> _ChosenObject | None:
    for example in sorted(examples, key=lambda example: len(example.gt_labels)):
        labels = example.gt_labels
        fitting = [place for place, label in enumerate(labels) if 1 < np.count_nonzero(labels == label) < len(labels)]
        if fitting:
            areas = (example.gt_boxes[:, 2:] - example.gt_boxes[:, :2]).prod(axis=1)
            return _ChosenObject(example, max(fitting, key=lambda place: areas[place]), classes)
    return None


def _csv_rows(spec: TargetsSpec, choice: _ChosenObject) -> list[dict[str, Any]]:
    example = choice.example
    lines = []
    for target in spec.targets:
        related = choice.related(target)
        for each, corners in enumerate(example.gt_boxes.tolist()):
            role = "reference" if each == choice.reference else "related" if each in related else None
            line = {"image_id": example.image_id, "image": example.name, "target": target, "object": each}
            line |= {"class": choice.name(each), "role": role}
            lines.append(line | dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)))
    return lines


def _table(spec: TargetsSpec, choice: _ChosenObject, source: Source, marks: str) -> Table:
    rows = tuple(
        (_label(target), choice.name(choice.reference), ", ".join(map(choice.name, choice.related(target))) or DASH)
        for target in spec.targets
    )
    sources = {(row, 2): source for row in range(len(rows))}
    return Table((f"target{marks}", "reference", "related objects"), rows, sources)


def _label(target: str) -> str:
    return f"{target.replace('-', ' ')} supervision"


def _draw(spec: TargetsSpec, choice: _ChosenObject, remarks: Sequence[str]) -> bytes:
    example = choice.example
    height, width = example.image.shape[:2]
    with style():
        figure = new_figure(_WIDTH * len(spec.targets) + 0.2, _WIDTH * height / width + 0.9, spec.title, remarks)
        for axes, target in zip(figure.subplots(1, len(spec.targets), squeeze=False)[0], spec.targets, strict=True):
            related = choice.related(target)
            axes.set_title(_label(target), fontsize=9)
            draw_relations(
                axes,
                example.image,
                example.gt_boxes[choice.reference],
                example.gt_boxes[related],
                reference_name=choice.name(choice.reference),
                partner_names=[choice.name(each) for each in related],
            )
        return png_bytes(figure)

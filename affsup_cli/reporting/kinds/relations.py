"""The strongest relations of one object of each test image, by several networks side by side (figures 1 and 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import DASH, Content, Source, Table, csv_bytes
from affsup_cli.reporting.render.figure import new_figure, png_bytes, style, typeset_texts
from affsup_cli.reporting.render.relation_picture import LEAST_WEIGHT, draw_relations, relations_legend
from affsup_cli.reporting.select.experiments import spec_cells
from affsup_cli.reporting.select.match import select_runs
from affsup_cli.reporting.select.spec import KeyedVariant, RelationsSpec
from affsup_cli.reporting.select.statistics import is_finite
from affsup_cli.runs.examples import Example, read_examples
from affsup_cli.runs.index import RunIndex, TrainedRun
from data_prep.errors import AffsupError, shorten

_CSV_COLUMNS = ("image_id", "image", "panel", "box", "class", "weight", "x1", "y1", "x2", "y2", "run", "marks")
_SHARES = {
    "test_attention_same_object": "its own object",
    "test_attention_same_class": "others of its class",
    "test_attention_other_class": "other classes",
    "test_attention_background": "no object",
}
_WIDTH = 3.4  # inches of a picture
_IMAGES_PER_COLUMN = 4
_MIN_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class _RunExamples:
    """A variant with its run and the examples of that run by image."""

    variant: KeyedVariant
    run: TrainedRun
    classes: tuple[str, ...]
    examples: dict[int, Example]


def build_relations(spec: RelationsSpec, runs: RunIndex) -> Content:
    """Draw the stored images of finished runs of one seed: the lowest one that most variants have.

    `.csv` has one line for each box drawn; `.png` is the picture.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    selection = select_runs(cells, runs.trained, examples_fault)
    group = selection.group
    footnotes = Footnotes()
    if group is None:
        return Content(_caption(None, None), (), (), tuple(selection.remarks(footnotes)), (), {})
    seed = group.common_seed()
    chosen = [(variant, group.runs.get(variant.key, {}).get(seed)) for variant in spec.panels]
    marks = footnotes.mark_departures(group.departures, group.data)
    drawn = footnotes.lines()
    notes = selection.remarks(footnotes)
    notes += [f"no run of seed {seed} for {variant.label}" for variant, run in chosen if not run]
    panels = [_load_examples(variant, run) for variant, run in chosen if run]
    common = _reference_objects(panels)
    shown = dict(list(common.items())[spec.skip : spec.skip + spec.images])
    if len(shown) < spec.images:
        notes.append(
            f"the runs store {len(common)} images with a related object that all of them propose: {len(shown)} of "
            f"{spec.images} are shown"
        )
    caption = _caption(panels[0].run.recipe.flat()["model.proposals"], seed)
    if not shown:
        return Content(caption, (), footnotes.lines(), tuple(notes), (), {})
    return Content(
        caption=caption,
        tables=(*_share_table(panels, marks), _table(panels, shown, marks)),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(panel.run for panel in panels),
        files={
            ".csv": csv_bytes(
                [
                    line | {"marks": marks.strip()}
                    for image, reference in shown.items()
                    for panel in panels
                    for line in _csv_rows(panel, image, reference)
                ],
                _CSV_COLUMNS,
            ),
            ".png": _draw(spec.title, panels, shown, drawn),
        },
    )


def _caption(proposals: int | None, seed: int | None) -> str:
    even = f" (an even share: {1 / (proposals - 1):.3f})" if proposals else ""
    return (
        "Blue: the reference, the best proposal of the object with the most annotated relations in its image, of the "
        "objects that every network proposes (IoU 0.5). Orange: the proposals with the largest share of its attention "
        f"(red), its row of W under a softmax without itself{even}; shares below 0.0005 are not drawn. Networks of "
        f"{'one seed' if seed is None else f'seed {seed}'}, with the same images and objects, chosen by annotations. "
        "The shares of attention are means over all test objects whose row holds at least an even share of the mass; "
        "single images need not look like the mean."
    )


def examples_fault(run: TrainedRun) -> str | None:
    """Return why a run's examples cannot be drawn, None if they can."""
    try:
        _, examples = read_examples(run.folder.examples)
    except AffsupError as error:
        return str(error)
    if not examples:
        return f"{run.folder.examples} holds no image"
    if not all(example.image.size and np.isfinite(example.gt_boxes).all() for example in examples):
        return f"{run.folder.examples} is damaged (an image without pixels, or a box that is not finite)"
    return None


def _load_examples(variant: KeyedVariant, run: TrainedRun) -> _RunExamples:
    classes, examples = read_examples(run.folder.examples)
    return _RunExamples(variant, run, classes, {example.image_id: example for example in examples})


def _reference_objects(panels: Sequence[_RunExamples]) -> dict[int, int]:
    """Return the reference object of each image: related to the most others, of those that all networks propose."""
    found = {}
    for number, example in panels[0].examples.items():
        if not all(number in panel.examples for panel in panels):
            continue
        subjects = np.unique(example.gt_pairs, axis=0)[:, 0]
        others = np.bincount(subjects, minlength=len(example.gt_labels))
        for panel in panels:
            others[_box_iou(example.gt_boxes, panel.examples[number].reference_boxes).diagonal() < _MIN_IOU] = 0
        if others.any():
            found[number] = int(others.argmax())
    return found


def _box_iou(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union `[P, G]` of boxes `[P, 4]` and `[G, 4]`."""
    sized = []
    for corners in (boxes, others):
        corners = corners.astype(np.float64)
        sized.append(np.hstack((corners[:, :2], corners[:, 2:] - corners[:, :2])))
    overlap: NDArray[np.float64] = coco_mask.iou(*sized, np.zeros(len(others), dtype=np.uint8))
    return overlap


def _class_names(example: Example, boxes: NDArray[np.float32], classes: Sequence[str]) -> list[str]:
    """Return for each box the class of the object that it overlaps most, by at least 0.5; else ""."""
    if not len(boxes):
        return []
    overlap = _box_iou(boxes, example.gt_boxes)
    of_best = zip(overlap.max(axis=1), example.gt_labels[overlap.argmax(axis=1)], strict=True)
    return [shorten(classes[label]) if best >= _MIN_IOU else "" for best, label in of_best]


def _csv_rows(panel: _RunExamples, image: int, reference: int) -> Iterator[dict[str, Any]]:
    """Yield a row for the reference, then one for each partner that is drawn."""
    example = panel.examples[image]
    boxes, weights = _partners(example, reference)
    names = _class_names(example, boxes, panel.classes)
    drawn = [
        ("reference", shorten(panel.classes[example.gt_labels[reference]]), None, example.reference_boxes[reference])
    ]
    drawn += [
        (f"partner {place}", *values)
        for place, values in enumerate(zip(names, weights.tolist(), boxes, strict=True), 1)
    ]
    for box, name, weight, corners in drawn:
        line = {
            "image_id": image,
            "image": shorten(example.name),
            "panel": panel.variant.key,
            "run": panel.run.folder.name,
        }
        line |= {"box": box, "class": name or None, "weight": weight}
        yield line | dict(zip(("x1", "y1", "x2", "y2"), map(float, corners), strict=True))


def _partners(example: Example, reference: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the boxes `[p, 4]` and weights `[p]` of the partners that are drawn."""
    boxes, weights = example.partners(reference)
    return boxes[weights >= LEAST_WEIGHT], weights[weights >= LEAST_WEIGHT]


def _share_table(panels: Sequence[_RunExamples], marks: str) -> Iterator[Table]:
    """Yield the table of the mean shares of attention over the test objects, if the runs have them."""
    of_panels = [[panel.run.result.metrics.get(metric) for metric in _SHARES] for panel in panels]
    if not all(is_finite(value) for values in of_panels for value in values):
        return
    rows = [
        (panel.variant.label, *(f"{100 * value:.1f}{marks}" for value in values if value is not None))
        for panel, values in zip(panels, of_panels, strict=True)
    ]
    sources = {
        (row, column): Source(panel.variant.label, (panel.run,), marks)
        for row, panel in enumerate(panels)
        for column in range(1, 1 + len(_SHARES))
    }
    yield Table(("attention of a test object on (%)", *_SHARES.values()), tuple(rows), sources)


def _table(panels: Sequence[_RunExamples], shown: Mapping[int, int], marks: str) -> Table:
    rows = []
    for image, reference in shown.items():
        lines = [list(_csv_rows(panel, image, reference)) for panel in panels]
        words = (
            ", ".join(f"{line['class'] or DASH} {line['weight']:.3f}" for line in of_panel[1:]) or DASH
            for of_panel in lines
        )
        rows.append((lines[0][0]["image"], lines[0][0]["class"], *words))
    sources = {
        (row, column): Source(panel.variant.label, (panel.run,), marks)
        for row in range(len(rows))
        for column, panel in enumerate(panels, start=2)
    }
    return Table(("image", "reference", *(f"{panel.variant.label}{marks}" for panel in panels)), tuple(rows), sources)


def _draw(title: str, panels: Sequence[_RunExamples], shown: Mapping[int, int], remarks: Sequence[str]) -> bytes:
    across = -(-len(shown) // _IMAGES_PER_COLUMN)
    down = -(-len(shown) // across)
    shapes = [panels[0].examples[image].image.shape for image in shown]
    heights = [
        _WIDTH * max(shape[0] / shape[1] for shape in shapes[row * across : (row + 1) * across]) for row in range(down)
    ]
    with style():
        figure = new_figure(_WIDTH * across * len(panels) + 0.2, sum(heights) + 0.25 * down + 0.9, title, remarks)
        grid = figure.subplots(down, across * len(panels), squeeze=False, height_ratios=heights)
        for axes in grid.flat:
            axes.set_axis_off()
        for place, (image, reference) in enumerate(shown.items()):
            row, column = divmod(place, across)
            for offset, panel in enumerate(panels):
                example = panel.examples[image]
                boxes, weights = _partners(example, reference)
                axes = grid[row, column * len(panels) + offset]
                typeset_texts([axes.set_title(panel.variant.label if row == 0 else "", fontsize=9)])
                draw_relations(
                    axes,
                    example.image,
                    example.reference_boxes[reference],
                    boxes,
                    weights,
                    reference_name=shorten(panel.classes[example.gt_labels[reference]]),
                    partner_names=_class_names(example, boxes, panel.classes),
                )
        relations_legend(figure)
        return png_bytes(figure)

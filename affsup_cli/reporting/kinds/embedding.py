"""t-SNE pictures of learned features, and how well the classes separate in the features (figure 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import DASH, Content, Source, Table, csv_bytes
from affsup_cli.reporting.render.figure import PALETTE, new_figure, png_bytes, style, typeset_texts
from affsup_cli.reporting.select.experiments import spec_cells
from affsup_cli.reporting.select.match import select_runs
from affsup_cli.reporting.select.spec import EmbeddingSpec, KeyedVariant
from affsup_cli.runs.features import read_features
from affsup_cli.runs.index import RunIndex, TrainedRun
from data_prep.errors import AffsupError

_POINT_COLUMNS = ("panel", "index", "x", "y", "label")
_SCORE_COLUMNS = ("panel", "seed", "run", "images", "silhouette", "nearest_neighbour_accuracy", "marks")
_MIN_IMAGES = 10
_MARKERS = "os^Dv<>PX*"


@dataclasses.dataclass(frozen=True)
class _Embedding:
    """One picture: `points` `[n, 2]` are the t-SNE of a run's features, `labels` `[n]` the true classes.

    `silhouette` (-1..1) and `neighbour_accuracy` (0..1, the nearest other image has the same class) are computed on the
    features, since distances in a t-SNE picture mean little.
    """

    variant: KeyedVariant
    run: TrainedRun
    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    silhouette: float
    neighbour_accuracy: float


def build_embedding(spec: EmbeddingSpec, runs: RunIndex) -> Content:
    """Build the pictures from finished runs of one seed: the lowest one that most variants have.

    `.csv` has one line for each point, `.scores.csv` one for each variant; `.png` is the picture.
    """
    cells = {cell.key: cell for cell in spec_cells(spec)}
    selection = select_runs(cells, runs.trained, _features_fault)
    group = selection.group
    footnotes = Footnotes()
    if group is None:
        tables = (_table(spec, [], ""),)
        return Content(_caption("of one seed"), tables, (), tuple(selection.remarks(footnotes)), (), {})
    seed = group.common_seed()
    chosen = [(variant, group.runs.get(variant.key, {}).get(seed)) for variant in spec.panels]
    panels = [_embed(variant, run) for variant, run in chosen if run]
    marks = footnotes.mark_departures(group.departures, group.data)
    drawn = footnotes.lines()
    notes = selection.remarks(footnotes)
    notes += [f"no run of seed {seed} for {variant.label}" for variant, run in chosen if not run]
    return Content(
        caption=_caption(f"with seed {seed}"),
        tables=(_table(spec, panels, marks),),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(panel.run for panel in panels),
        files={
            ".csv": csv_bytes([line for panel in panels for line in _point_rows(panel)], _POINT_COLUMNS),
            ".scores.csv": csv_bytes([_score_row(panel, marks) for panel in panels], _SCORE_COLUMNS),
            ".png": _draw(spec.title, panels, drawn),
        },
    )


def _caption(which: str) -> str:
    return (
        f"t-SNE of test images' features, coloured by class, of runs {which}. Silhouette and nearest-neighbour "
        "accuracy are computed on the features; higher is better."
    )


def _features_fault(run: TrainedRun) -> str | None:
    try:
        features, labels = read_features(run.folder.features)
    except FileNotFoundError:
        return "no features.npz"
    except AffsupError as error:
        return str(error)
    if not np.isfinite(features).all():
        return "features.npz holds numbers that are not finite"
    if len(features) < _MIN_IMAGES or not 1 < len(np.unique(labels)) < len(labels):
        return f"features.npz holds {len(features)} images of {len(np.unique(labels))} classes, too few to compare"
    return None


def _embed(variant: KeyedVariant, run: TrainedRun) -> _Embedding:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    features, labels = read_features(run.folder.features)
    nearest = NearestNeighbors(n_neighbors=1).fit(features).kneighbors(return_distance=False)[:, 0]
    reduced = features
    if min(features.shape) > 50:
        reduced = PCA(n_components=50, random_state=0).fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=0).fit_transform(reduced)
    return _Embedding(
        variant=variant,
        run=run,
        points=points.astype(np.float64),
        labels=labels,
        silhouette=float(silhouette_score(features, labels)),
        neighbour_accuracy=float((labels[nearest] == labels).mean()),
    )


def _table(spec: EmbeddingSpec, panels: Sequence[_Embedding], marks: str) -> Table:
    found = {panel.variant.key: panel for panel in panels}
    rows = []
    sources: dict[tuple[int, int], Source] = {}
    for row, variant in enumerate(spec.panels):
        panel = found.get(variant.key)
        if panel is None:
            rows.append((variant.label, DASH, DASH, DASH))
            continue
        neighbour = f"{100 * panel.neighbour_accuracy:.2f}{marks}"
        source = Source(variant.label, (panel.run,), marks)
        sources |= {(row, column): source for column in (1, 2)}
        rows.append((variant.label, f"{panel.silhouette:.3f}{marks}", neighbour, f"{len(panel.labels):,}"))
    return Table(("features of", "silhouette", "nearest neighbour (%)", "images"), tuple(rows), sources)


def _point_rows(panel: _Embedding) -> Iterator[dict[str, Any]]:
    for index, ((x, y), label) in enumerate(zip(panel.points, panel.labels, strict=True)):
        yield {"panel": panel.variant.key, "index": index, "x": float(x), "y": float(y), "label": int(label)}


def _score_row(panel: _Embedding, marks: str) -> dict[str, Any]:
    return {
        "panel": panel.variant.key,
        "seed": panel.run.recipe.seed,
        "run": panel.run.folder.name,
        "images": len(panel.labels),
        "silhouette": panel.silhouette,
        "nearest_neighbour_accuracy": panel.neighbour_accuracy,
        "marks": marks.strip(),
    }


def _draw(title: str, panels: Sequence[_Embedding], remarks: Sequence[str]) -> bytes:
    with style():
        figure = new_figure(4.6 * len(panels) + 0.8, 5.2, title, remarks)
        classes = sorted({int(label) for panel in panels for label in panel.labels})
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for place, label in enumerate(classes):
                x, y = panel.points[panel.labels == label].T
                turn, colour = divmod(place, len(PALETTE))
                marker = _MARKERS[turn % len(_MARKERS)]
                axes.scatter(x, y, s=9, color=PALETTE[colour], marker=marker, alpha=0.8, linewidths=0, label=str(label))
            scores = f"silhouette {panel.silhouette:.3f}, nearest neighbour {100 * panel.neighbour_accuracy:.1f} %"
            typeset_texts([axes.set_title(f"{panel.variant.label}\n{scores}")])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_aspect("equal", adjustable="datalim")
            axes.spines[:].set_visible(True)
            axes.spines[:].set_color("#cccccc")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        columns = -(-len(labels) // 20)
        figure.legend(handles, labels, title="class", loc="outside right upper", markerscale=2.2, ncols=columns)
        return png_bytes(figure)

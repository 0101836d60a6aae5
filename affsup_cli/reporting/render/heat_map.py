"""A heat map of the numbers of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from affsup_cli.reporting.render.figure import new_figure, png_bytes, style

_MAX_TEXT = 12
"""Numbers are written into the squares of maps with at most so many rows and columns."""


def heat_map_png(
    title: str,
    rows: Sequence[str],
    blocks: Sequence[tuple[str, Sequence[str]]],
    values: Mapping[tuple[int, int, int], float],
    remarks: Sequence[str],
) -> bytes:
    """Return a PNG with a map for each block, all on one scale of colours.

    Args:
        title: above the maps.
        rows: labels of the rows.
        blocks: the label of each block, and the labels of its columns.
        values: the numbers by the indices of block, row and column; a missing one is left white.
        remarks: below the maps.
    """
    with style():
        columns = max(len(labels) for _, labels in blocks)
        width = max(4.0, 0.9 * columns + 1.6)
        figure = new_figure(width * len(blocks), max(3.0, 0.45 * len(rows) + 1.8), title, remarks)
        low, high = (min(values.values()), max(values.values())) if values else (0.0, 1.0)
        drawn = None
        for block, (axes, (label, headings)) in enumerate(
            zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True)
        ):
            numbers = np.full((len(rows), len(headings)), np.nan)
            for (of_block, row, column), value in values.items():
                if of_block == block:
                    numbers[row, column] = value
            drawn = axes.imshow(numbers, cmap="viridis", vmin=low, vmax=high, aspect="auto")
            axes.set_title(label)
            axes.set_xticks(range(len(headings)), headings, rotation=30, ha="right")
            axes.set_yticks(range(len(rows)), rows)
            if max(len(rows), len(headings)) <= _MAX_TEXT:
                for (row, column), value in np.ndenumerate(numbers):
                    if np.isfinite(value):
                        dark = high == low or value < (low + high) / 2
                        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k")
        if drawn is not None:
            figure.colorbar(drawn, ax=figure.axes, shrink=0.8)
        return png_bytes(figure)

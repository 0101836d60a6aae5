"""The style of all figures, and reproducible PNG bytes. matplotlib's object API: no display, no global state."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

Values = npt.NDArray[np.float64]

PALETTE = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""M. Petroff's accessible ten-colour cycle (arXiv:2107.02270)."""

DOTS_PER_INCH = 150
_SYMBOL = re.compile(r"\b([LF])_(G|S|C|in)\b")
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs may hold "$"
}


def style() -> AbstractContextManager[None]:
    """Return a context that draws in the project's style, independent of a matplotlibrc."""
    return matplotlib.style.context(_STYLE, after_reset=True)


def new_figure(width: float, height: float, title: str, remarks: Sequence[str]) -> Figure:
    """Return a figure of that size in inches, with its title at the top and `remarks` in small print at the bottom.

    A remark is cut to one line: the report's page has the full text.
    """
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    heading = "\n".join(textwrap.wrap(title, int(width * 9)))
    typeset_texts([figure.suptitle(heading, fontsize=12.5, fontweight="bold", x=0.012, ha="left")])
    foot = "\n".join(
        textwrap.shorten(remark, int(width * 15), placeholder=" … (in full on its page)") for remark in remarks
    )
    if foot:
        typeset_texts([figure.supxlabel(foot, fontsize=7.5, color="#555555", x=0.012, ha="left")])
    return figure


def typeset(text: str) -> str:
    """Return text for matplotlib's math parser: L_G and F_S become symbols, everything else is plain text."""
    return _SYMBOL.sub(r"$\1_{\\mathrm{\2}}$", text.replace("$", r"\$"))


def typeset_texts(texts: Iterable[Text]) -> None:
    """Typeset texts of a figure, such as those of a legend."""
    for text in texts:
        text.set_parse_math(True)
        text.set_text(typeset(text.get_text()))


def draw_mean(axes: Axes, x: Sequence[int], values: Values, **line: Any) -> None:
    """Draw the mean of `values` `[runs, len(x)]` as a line; with two or more runs a band of ± sample deviation."""
    mean = values.mean(axis=0)
    (drawn,) = axes.plot(x, mean, linewidth=1.6, **line)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=drawn.get_color(), alpha=0.15, linewidth=0)


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as PNG without date and version."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")  # drawn as a box
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

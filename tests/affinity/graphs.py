"""Graphs to try the method on: the options in all combinations, random batches, and hypothesis strategies."""

from __future__ import annotations

from itertools import product
from typing import get_args

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from affsup_cli.affinity import LossForm

FORMS = get_args(LossForm)
SOFTMAXES = ("matrix", "row")
DIAGONALS = ("keep", "exclude")
OPTIONS = tuple(product(FORMS, SOFTMAXES, DIAGONALS))

properties = settings(deadline=None, derandomize=True, database=None, max_examples=40)


def random_batch(seed: int = 0, graphs: int = 5, size: int = 6, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and targets `[graphs, size, size]` in float64: the second target empty, the third full, the rest mixed.

    The fourth has only its diagonal, so that excluding it leaves nothing; every mixed target has a row without entries.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(graphs, size, size, generator=generator, dtype=torch.float64)
    target = torch.rand(graphs, size, size, generator=generator) < 0.4
    target[:, 0] = False
    target[1] = False
    target[2] = True
    target[3] = torch.eye(size, dtype=torch.bool)
    return logits, target


@st.composite
def square_graphs(draw: st.DrawFn, limit: float = 20.0) -> tuple[Tensor, Tensor]:
    """One graph of 1 to 5 entities: float64 logits within `limit`, and any target, empty and full included."""
    size = draw(st.integers(1, 5))
    logits = draw(arrays(np.float64, (size, size), elements=st.floats(-limit, limit)))
    target = draw(arrays(np.bool_, (size, size)))
    return torch.from_numpy(logits), torch.from_numpy(target)

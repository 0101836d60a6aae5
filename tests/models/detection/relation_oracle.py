"""Relation Networks' equations in float64 NumPy, literally: loops over pairs, raw values averaged, then mapped."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Layer(NamedTuple):
    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        return self.weight @ x + self.bias


def embedding(query: Array, key: Array, dim: int = 64, wavelength: float = 1000.0) -> Array:
    """E_G of one pair of boxes."""
    width_q, height_q = max(query[2] - query[0], 1), max(query[3] - query[1], 1)
    width_k, height_k = max(key[2] - key[0], 1), max(key[3] - key[1], 1)
    ratios = (
        math.log(max(abs((query[0] + query[2]) / 2 - (key[0] + key[2]) / 2) / width_q, 1e-3)),
        math.log(max(abs((query[1] + query[3]) / 2 - (key[1] + key[3]) / 2) / height_q, 1e-3)),
        math.log(width_q / width_k),
        math.log(height_q / height_k),
    )
    values = []
    for ratio in ratios:
        angles = [100 * ratio / wavelength ** (8 / dim * k) for k in range(dim // 8)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return np.array(values)


def relation(
    features: Array, boxes: Array, keys: int, heads: int, query: Layer, key: Layer, value: Layer, geometry: Layer
) -> tuple[Array, Array, Array]:
    """Context `[Q, d]`, scaled dot products and geometric logits `[heads, Q, keys]` of one image."""
    count = len(features)
    dots, logits = np.zeros((2, heads, count, keys))
    for m in range(count):
        for n in range(keys):
            weights = geometry(embedding(boxes[m], boxes[n], geometry.weight.shape[1]))
            queries, looked_at = np.split(query(features[m]), heads), np.split(key(features[n]), heads)
            for head in range(heads):
                dots[head, m, n] = queries[head] @ looked_at[head] / math.sqrt(len(queries[head]))
                logits[head, m, n] = math.log(max(max(weights[head], 0), 1e-6))
    context = []
    for m in range(count):
        parts = []
        for head in range(heads):
            exponentials = np.exp(dots[head, m] + logits[head, m])
            mean = sum(share * features[n] for n, share in enumerate(exponentials / exponentials.sum()))
            of_head = np.split(value.weight, heads)[head], np.split(value.bias, heads)[head]
            parts.append(Layer(*of_head)(mean))
        context.append(np.concatenate(parts))
    return np.array(context), dots, logits

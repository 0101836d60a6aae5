"""The relation module of Hu et al., Relation Networks for Object Detection, CVPR 2018, as in its released code.

Multi-head attention among the proposals of an image; the logits are scaled dot products (eq. 9) plus the logarithm of
a learned geometric weight (supplement F).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affsup_cli.affinity import scaled_dot_affinity
from affsup_cli.affinity.precision import at_least_float32, without_autocast, without_tf32

LEAST_OFFSET = 1e-3
LEAST_GEOMETRIC_WEIGHT = 1e-6
INITIAL_STD = 0.01


@torch.no_grad()
def geometry_embedding(boxes: Tensor, keys: Tensor, dim: int = 64, wavelength: float = 1000.0) -> Tensor:
    """The embedding E_G of each key box relative to each query box, supplement F; eq. 5 of Relation Networks.

    Four logarithms of ratios, `|x_q - x_k| / w_q` and `|y_q - y_k| / h_q` of the centres (at least 0.001),
    `w_q / w_k` and `h_q / h_k`, times 100, each in `dim / 8` wavelengths from 2 pi up to, but not including,
    2 pi `wavelength`: first all sines, then all cosines. Sides below one pixel count as one pixel. The boxes get no
    gradient. Compute it once for all modules on the same boxes.

    Args:
        boxes: queries `[..., Q, 4]` as x1, y1, x2, y2 in pixels.
        keys: `[..., N, 4]`, in the same format.
        dim: length of the embedding, a multiple of 8.
        wavelength: ratio of the longest wavelength to the shortest.

    Returns:
        `[..., Q, N, dim]`, float32 (float64 for float64 boxes).

    Raises:
        ValueError: `dim` is not a multiple of 8.
    """
    if dim % 8:
        raise ValueError(f"the length of a geometry embedding must be a multiple of 8, found {dim}")
    query_centre, query_size = centres_and_sizes(at_least_float32("boxes", boxes).unsqueeze(-2))
    key_centre, key_size = centres_and_sizes(at_least_float32("keys", keys).unsqueeze(-3))
    offset = ((query_centre - key_centre).abs() / query_size).clamp(min=LEAST_OFFSET).log()
    scale = query_size.log() - key_size.log()
    ratios = torch.cat([offset, scale], dim=-1)
    exponents = torch.arange(dim // 8, device=ratios.device, dtype=ratios.dtype) * (8 / dim)
    angles = (100 * ratios).unsqueeze(-1) / wavelength**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class RelationModule(nn.Module):
    """Attention of each proposal of an image to the image's first N proposals; supplement F and the release.

    Per head: logits `<W_Q f_q, W_K f_k> / sqrt(key_dim) + log max(ReLU(FC(E_G)), 1e-6)`, a softmax over the keys, and
    the mean of the keys' raw features under it, mapped to `features / heads` values; the heads' results are
    concatenated. Values are mapped before they are averaged, not after as in the release: the same, as both are
    linear and weights sum to 1, for a sixteenth of the work. New layers start as N(0, 0.01) with bias 0.

    Images do not interact. Logits and softmax are float32 under autocast: W is ranked and supervised, and bfloat16
    would create ties. A head of two modules computes E_G once::

        embedding = geometry_embedding(boxes, boxes[:, :keys])
        f = fc1(pooled)
        f = relu(f + relation1(f, embedding, present)[0])

    Args:
        features: length d of a proposal's feature vector, a multiple of `heads`.
        heads: number of attention heads.
        key_dim: length of a head's queries and keys.
        geometry_dim: length of E_G.

    Raises:
        ValueError: `features` is not a multiple of `heads`.
    """

    def __init__(self, features: int = 1024, heads: int = 16, key_dim: int = 64, geometry_dim: int = 64) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"{features} features cannot be split among {heads} heads: take a multiple")
        self.heads = heads
        self.query = nn.Linear(features, heads * key_dim)
        self.key = nn.Linear(features, heads * key_dim)
        self.value = nn.Linear(features, features)
        self.geometry = nn.Linear(geometry_dim, heads)
        for layer in (self.query, self.key, self.value, self.geometry):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, embedding: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Relate proposals to the keys, which are the first N of them.

        Args:
            features: `[B, Q, d]`, Q >= N; the last Q - N (annotated boxes, in training) are queries only.
            embedding: E_G `[B, Q, N, geometry_dim]` from `geometry_embedding`; its third dimension is N.
            present: bool `[B, N]`, false for padding among the keys, which gets no attention.

        Returns:
            The context `[B, Q, d]` to be added to `features` (0 in an image without keys), the scaled dot products
            of eq. 9 without geometry `[B, heads, Q, N]`, and the geometric logits `log max(ReLU(FC(E_G)), 1e-6)`
            `[B, heads, Q, N]`. Those of absent keys are undefined.
        """
        keys = features[:, : embedding.shape[2]]
        queries, projected_keys, values = (
            self._split(projected) for projected in (self.query(features), self.key(keys), self.value(keys))
        )
        with without_autocast(features), without_tf32(features):
            dots = scaled_dot_affinity(at_least_float32("queries", queries), at_least_float32("keys", projected_keys))
            weight = self.geometry(embedding).relu().clamp(min=LEAST_GEOMETRIC_WEIGHT)
            geometry = weight.log().permute(0, 3, 1, 2)
            # The lowest number, not -inf: without any key, a softmax of infinities and its gradient would be NaN.
            lowest = torch.finfo(dots.dtype).min
            attention = (dots + geometry).masked_fill(~present[:, None, None], lowest).softmax(dim=-1)
        context = (attention.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return context * present.any(dim=1)[:, None, None], dots, geometry

    def _split(self, projected: Tensor) -> Tensor:
        """`[B, N, heads * width]` -> `[B, heads, N, width]`."""
        batch, count, width = projected.shape
        return projected.view(batch, count, self.heads, width // self.heads).transpose(1, 2)


def centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes `[..., 2]` (x, y) of boxes `[..., 4]`; sides below one pixel count as one pixel."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, (high - low).clamp(min=1)

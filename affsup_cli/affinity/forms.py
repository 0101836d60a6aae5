"""The forms of L_G that are functions of the target affinity mass M (eq. 5-7).

A form takes the log-odds d of M, any shape, float32 or float64, and gamma. It returns the loss L of each mass and its
slope dL/dd. A graph without a target has d = -inf: what a form returns there is not used.
A new form is a function here and its name in `affsup_cli.affinity.options.LossForm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from affsup_cli.affinity.options import LossForm


def focal(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`-(1 - M)^gamma log M`, eq. 7 and 14."""
    if gamma == 0:
        return log(log_odds, gamma)
    miss = torch.sigmoid(-log_odds)
    surprise = F.softplus(-log_odds, threshold=50)  # -log M; from 50 on the two are one float64
    power = miss**gamma
    return power * surprise, -power * torch.addcmul(miss, torch.sigmoid(log_odds), surprise, value=gamma)


def log(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`-log M`, eq. 7 with gamma 0."""
    return F.softplus(-log_odds, threshold=50), -torch.sigmoid(-log_odds)


def l2(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`(1 - M)^2`, eq. 5."""
    miss = torch.sigmoid(-log_odds)  # its own slope is -M (1 - M)
    return miss.square(), 2 * miss * miss * (miss - 1)


def smooth_l1(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """With x = 1 - M: `x^2` below 0.5, `x - 0.25` from there on, eq. 6."""
    miss = torch.sigmoid(-log_odds)
    small = miss < 0.5
    losses = torch.where(small, miss.square(), miss - 0.25)
    return losses, torch.where(small, 2 * miss, 1) * miss * (miss - 1)


FORMS: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    name: globals()[name] for name in get_args(LossForm) if name != "bce"
}
"""Every form but "bce", which has no softmax and therefore no M (eq. 15)."""

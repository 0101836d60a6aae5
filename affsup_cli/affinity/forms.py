"""The forms of L_G that are functions of the target affinity mass M (eq. 5-7).

A form takes the log-odds d of M, any shape, float32 or float64, and gamma. It returns the loss L of each mass and its
slope dL/dd. A graph without a target has d = -inf; the result of a form for it is not used.
A new form is a function in this module, and its name in `affsup_cli.affinity.options.LossForm`.
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
    rest_odds = -log_odds
    complement = torch.sigmoid(rest_odds)
    negative_log = F.softplus(rest_odds, threshold=50)  # -log M; above 50 equal to -d in float64
    power = complement**gamma
    return power * negative_log, -power * torch.addcmul(complement, torch.sigmoid(log_odds), negative_log, value=gamma)


def log(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`-log M`, eq. 7 with gamma 0."""
    return F.softplus(-log_odds, threshold=50), -torch.sigmoid(-log_odds)


def l2(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`(1 - M)^2`, eq. 5."""
    complement = torch.sigmoid(-log_odds)  # its own slope is -M (1 - M)
    return complement.square(), 2 * complement * complement * (complement - 1)


def smooth_l1(log_odds: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """With x = 1 - M: `x^2` for x < 0.5, else `x - 0.25`, eq. 6."""
    complement = torch.sigmoid(-log_odds)
    small = complement < 0.5
    losses = torch.where(small, complement.square(), complement - 0.25)
    return losses, torch.where(small, 2 * complement, 1) * complement * (complement - 1)


FORMS: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    name: globals()[name] for name in get_args(LossForm) if name != "bce"
}
"""Every form but "bce", which has no softmax and therefore no M (eq. 15)."""

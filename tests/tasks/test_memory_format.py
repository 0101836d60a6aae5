from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.tasks import build_task
from tests.small_scenes import small


def of_digits(**fields: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in fields.items()}
    return load_recipe("minibatch", {"run.device": "cpu", "train.batch_size": 16} | given)


@pytest.mark.parametrize(("recipe", "data"), [(of_digits, "digits"), (small, "shapes")])
def test_all_convolutions_work_in_the_memory_format_of_the_recipe(
    request: pytest.FixtureRequest, recipe: Any, data: str
) -> None:
    losses = []
    for channels_last in (True, False):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        task = build_task(recipe(run__channels_last=channels_last), request.getfixturevalue(data))
        convolutions = [
            part for part in task.model.modules() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)
        ]
        entered: list[torch.Tensor] = []
        for part in convolutions:
            entered.append(part.weight)
            part.register_forward_pre_hook(lambda _, given, into=entered: into.append(given[0]))
        task.begin_epoch(0)
        torch.manual_seed(0)  # of the samplers
        losses.append(task.losses(0).total())
        assert len(entered) >= 2 * len(convolutions) > 0
        assert all(each.is_contiguous(memory_format=layout) for each in entered)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)

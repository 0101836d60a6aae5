from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps.packs import alone, packed
from affsup_cli.sweeps.plan import Step


def step(name: str = "minibatch", **fields: Any) -> Step:
    overrides = {key.replace("__", "."): value for key, value in fields.items()}
    return Step((name,), load_recipe(name, overrides), None, RunFolder(Path("runs")), "missing", None, 0)


def test_runs_pack_that_differ_in_seed_and_in_l_g_alone() -> None:
    base, other, deeper = step(affinity__loss="none"), step(seed=1, affinity__gamma=2), step(model__arch="resnet56")
    longer = step(train__epochs=7, seed=2)
    assert packed([base, deeper, other, longer], most=9) == [(base, other), (deeper,), (longer,)]


def test_where_they_run_does_not_part_them() -> None:
    first, second = step(run__device="cuda"), step(run__tensorboard=True)
    assert packed([first, second], most=9) == [(first, second)]


def test_other_tasks_cost_comparisons_and_damaged_folders_stay_alone() -> None:
    scenes = [step("relnet"), step("relnet", seed=1)]
    measured = dataclasses.replace(step(), baseline=load_recipe("minibatch"))
    damaged = dataclasses.replace(step(), state="damaged")
    steps = [*scenes, measured, damaged, step()]
    assert packed(steps, most=9) == alone(steps)


def test_runs_that_are_alike_spread_over_places_that_would_be_idle() -> None:
    seeds = [step(seed=seed) for seed in range(5)]
    assert packed(seeds, most=9, places=2) == [tuple(seeds[:2]), tuple(seeds[2:])]
    assert packed(seeds[:2], most=9, places=8) == alone(seeds[:2])
    deeper = [step(seed=seed, model__arch="resnet56") for seed in range(5)]
    assert packed([*seeds, *deeper], most=9, places=2) == [tuple(seeds), tuple(deeper)]


def test_a_pack_is_as_large_as_it_may_be_and_no_larger() -> None:
    seeds = [step(seed=seed) for seed in range(5)]
    packs = packed(seeds, most=2)
    assert sorted(map(len, packs)) == [1, 2, 2]
    assert [step for pack in packs for step in pack] == seeds  # the first to begin are the first of the order
    assert packed(seeds, most=1) == alone(seeds)

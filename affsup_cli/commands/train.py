"""`affsup train`: one run of a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from affsup_cli.affinity.options import LossForm, TargetKind
from affsup_cli.completion import complete_dataset, complete_recipe
from affsup_cli.options import OPTION_OF_FIELD, DataDir, Device, RunsDir, Set
from affsup_cli.resolve import DATA_DIR, RUNS_DIR

if TYPE_CHECKING:
    from affsup_cli.recipe import Recipe


def train(
    recipe: Annotated[
        str,
        typer.Argument(help="A shipped recipe (`affsup list recipes`) or a TOML file.", autocompletion=complete_recipe),
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Prepared data set (`affsup list datasets`).", autocompletion=complete_dataset)
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Network or backbone, such as resnet20, resnet101.")] = None,
    loss: Annotated[
        str | None, typer.Option(help=f"Form of L_G: {', '.join(get_args(LossForm))}; none: base network.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Focal exponent: 0, or 1 and above.")] = None,
    weight: Annotated[float | None, typer.Option("--lambda", help="Weight of L_G in the total loss.")] = None,
    softmax: Annotated[
        str | None, typer.Option(help="matrix or row: softmax over the whole affinity matrix, or over each row.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help=f"Target of L_G: {', '.join(get_args(TargetKind))}."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs; train.milestones do not change.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of initial weights, order and augmentation.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="scene: run of relnet, or exported file, used as part A; by default the finished run of [network].",
        ),
    ] = None,
    device: Device = None,
    gpus: Annotated[
        int, typer.Option(min=1, help="Number of GPUs of this machine; with --device cpu, number of processes.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, print sizes and memory, and train nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue this run from its checkpoint.")] = False,
    name: Annotated[
        str | None, typer.Option(help="Folder of the run under --runs, instead of one named by its recipe.")
    ] = None,
    settings: Set = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Train one run of a recipe and evaluate it.

    The run folder keeps everything. Ctrl-C saves and exits; the same command with --resume continues. Without options
    `minibatch` trains on the digits that ship with the install, `frcnn`, `relnet` and `relpn` on generated scenes;
    `affsup show relnet` lists all fields of a recipe for --set.

    With --gpus, or under torchrun for several machines, each process takes its shard of every batch. Batch size
    and learning rate stay those of the recipe. Batch norm, dropout and the detectors' samplers work on a shard: they
    depend on the number of processes.

    \b
    affsup train minibatch
    affsup train relnet --gamma 2
    affsup train relnet --dataset voc07 --loss none
    affsup train relnet --dataset vg --target relationship
    affsup train minibatch --dataset cifar10 --arch resnet20
    affsup train minibatch --dataset cifar10 --arch resnet20 --loss none
    affsup train minibatch --gamma 2 --seed 1 --set train.batch_size=64
    affsup train scene --pretrained relnet-shapes-convnet-focal-seed0-3f2a91c0
    affsup train relnet --dataset coco --gpus 2
    affsup train relnet --dataset coco --gpus 8 --dry-run
    torchrun --nproc-per-node 2 -m affsup_cli train relnet --dataset coco
    """
    import re

    from affsup_cli.recipe import NAME, load_recipe, parse_override
    from affsup_cli.resolve import model_path
    from affsup_cli.runtime.stop import imports_uninterrupted
    from data_prep.errors import UsageError

    values = (dataset, arch, loss, gamma, weight, softmax, target, epochs, seed, device)
    shortcuts = zip(OPTION_OF_FIELD, values, strict=True)
    given: dict[str, Any] = {key: value for key, value in shortcuts if value is not None}
    _refuse_options_of_others(recipe, given)
    if pretrained == "":
        raise UsageError("--pretrained '': expected a run folder, its name under --runs, or an exported file")
    named = model_path(pretrained, runs) if pretrained is not None else None
    if named is not None:
        from affsup_cli.tasks.prerequisite import recipe_of_network

        given["network"] = recipe_of_network(recipe, named).model_dump(mode="json", by_alias=True)
    resolved = load_recipe(recipe, {**given, **dict(parse_override(text) for text in settings or [])})
    if name is not None and not re.fullmatch(NAME, name):
        raise UsageError(
            f"--name {name!r}: expected letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    if dry_run:
        _print_dry_run(resolved, data, gpus)
        return
    started = os.environ.get("WORLD_SIZE", "1")  # set by torchrun, or by the call below
    with imports_uninterrupted():
        from affsup_cli.tasks.launch import batch_shards
    if gpus > 1 and started == "1":
        from affsup_cli.distributed.launch import run_processes

        batch_shards(resolved, gpus)
        raise typer.Exit(run_processes(gpus, resolved.run.device, sys.argv[1:]))
    if gpus > 1 and started != str(gpus):
        raise UsageError(f"--gpus {gpus}, but {started} processes were started already (WORLD_SIZE): leave it out")
    process_group: AbstractContextManager[None] = nullcontext()
    if started != "1":
        from affsup_cli.distributed.collectives import init_distributed
        from affsup_cli.distributed.launch import stop_with_parent

        stop_with_parent()
        process_group = init_distributed(resolved.run.device)
    with process_group:
        _train(resolved, data, runs, name, resume, named)


def _print_dry_run(recipe: Recipe, data: Path, processes: int) -> None:
    """Print what a run would take."""
    from affsup_cli.tasks.dry_run import dry_run
    from affsup_cli.views.console import console
    from affsup_cli.views.embedded import prepare_embedded

    prepare_embedded([recipe], data)
    sizes = dry_run(recipe, data, processes)
    images = ", ".join(map(str, dict.fromkeys(sizes.images_each)))
    at_least = "" if recipe.task == "minibatch" else "at least "
    for line in (
        f"recipe: {recipe.label()}, all fields are valid",
        f"epoch: {sizes.images:,} images, {sizes.steps:,} steps of {recipe.train.batch_size} images",
        f"processes: {processes}, each with {images} of the images of a step",
        f"parameters: {sizes.parameters:,}, of which {sizes.trained:,} are trained",
        f"memory of a process: {sizes.state_bytes / 2**20:,.1f} MiB for weights, gradients and momentum, "
        f"{at_least}{sizes.activation_bytes / 2**20:,.1f} MiB for activations in float32",
        f"checkpoint: {sizes.checkpoint_bytes / 2**20:,.1f} MiB, and the one before it while the run lasts",
    ):
        console.print(line, markup=False)


def _refuse_options_of_others(recipe: str, given: Mapping[str, Any]) -> None:
    """Refuse options for fields that the recipe lacks."""
    from affsup_cli.recipe import field_help, recipe_kind
    from data_prep.errors import UsageError

    fields = field_help(recipe_kind(recipe))
    for key, value in given.items():
        if key not in fields:
            of_network = f"network.{key}"
            hint = f": part A's is --set {of_network}={value}" if of_network in fields else f": it has no field {key}"
            raise UsageError(f"{OPTION_OF_FIELD[key]} is not for {recipe}{hint}")


def _train(resolved: Recipe, data: Path, runs: Path, name: str | None, resume: bool, named: Path | None) -> None:
    """Train, in one process or as one of several."""
    from affsup_cli.distributed import collectives
    from affsup_cli.runs.folder import RunFolder
    from affsup_cli.runtime.devices import resolve_device, slow_bf16
    from affsup_cli.tasks.launch import batch_shards, data_digest, run_name, train_run
    from affsup_cli.tasks.prerequisite import find_network
    from affsup_cli.views.console import console, print_result, print_warning
    from affsup_cli.views.embedded import prepare_embedded
    from affsup_cli.views.live_training import LiveLine

    console.quiet = collectives.rank() > 0
    device = resolve_device(resolved.run.device)
    collectives.broadcast_from_rank0(lambda: prepare_embedded([resolved], data))
    network = find_network(resolved, named, data, runs)
    digests = data_digest(resolved, data), network.data if network else None
    run = RunFolder(runs / (name or run_name(resolved, *digests)))
    finished_before = run.finished
    if warning := slow_bf16(resolved.train.precision, device):
        print_warning(warning)

    def observers() -> list[LiveLine]:
        console.print(f"run folder {run.path}", markup=False)
        if collectives.world_size() > 1:
            console.print(_describe_processes(**batch_shards(resolved, collectives.world_size())))
        return [LiveLine(console)]

    train_run(resolved, data, run, resume, observers, network.path if network else None)
    if console.quiet:
        return
    if finished_before:
        console.print(f"{run.path} is finished already; its result:", markup=False)
    print_result(run)


def _describe_processes(count: int, images_each: Sequence[int]) -> str:
    each = str(images_each[0]) if len(set(images_each)) == 1 else f"{min(images_each)} or {max(images_each)}"
    return (
        f"{count} processes, each with {each} of the {sum(images_each)} images of a step: batch size and learning rate "
        "are the recipe's, whatever the number of processes"
    )

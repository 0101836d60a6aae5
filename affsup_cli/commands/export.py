"""`affsup export`: a trained model as one file to pass on, with a page that says what it is."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_run
from affsup_cli.options import RunsDir, expand_user
from affsup_cli.resolve import RUNS_DIR, run_path

if TYPE_CHECKING:
    from affsup_cli.runs.export import TrainedModel


class Format(StrEnum):
    """What an exported file can be."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


def export(
    run: Annotated[
        str, typer.Argument(help="Finished run folder, or its name under --runs.", autocompletion=complete_run)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=expand_user,
            help="File to write.  [default: exports/<run's name>.<format>]",
        ),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="onnx: for other runtimes; the file has the network alone.")
    ] = Format.SAFETENSORS,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="ONNX detectors: size of the input in pixels.  [default: the recipe's longest and shortest side]",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Upload file and card to this repository of the Hugging Face hub as well."
        ),
    ] = None,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Write a run's model into one file, with its recipe and numbers inside.

    The file is safetensors, which other programs read too; beside it lies FILE.md, a model card. `affsup predict` and
    `affsup train scene --pretrained` take the file in place of the run.

    --format onnx writes the network for other runtimes: of a classifier for any number of images, of a detector for
    one image of a fixed size. It is compared with PyTorch, and refused if it differs. `pip install 'affsup[onnx]'`
    installs what it takes.

    --push uploads the file, and the card as README.md, in one commit; a repository that does not exist is created,
    private. The token is that of `hf auth login` or HF_TOKEN. `pip install 'affsup[hub]'` installs what it takes.

    \b
    affsup export relnet-voc07-resnet101-focal-seed0-3f2a91c0
    affsup export runs/my-run --out shared/detector.safetensors
    affsup export runs/my-run --format onnx
    affsup export runs/my-run --format onnx --size 1000x600
    affsup export runs/my-run --push me/my-detector
    """
    from affsup_cli.runs import hub
    from affsup_cli.runs.export import export_trained, open_trained
    from affsup_cli.runs.folder import RunFolder, write_out
    from affsup_cli.runs.results import read_train_result
    from affsup_cli.views.console import console
    from affsup_cli.views.model_card import HEAD, model_card
    from data_prep.errors import UsageError

    if size is not None and format_ is not Format.ONNX:
        raise UsageError("--size is for --format onnx")
    if push is not None:
        hub.check_repository(push)
    folder = RunFolder.open(run_path(run, runs))
    result = read_train_result(folder)
    trained = open_trained(folder.path)
    path = out or Path("exports") / f"{folder.name}.{format_.value}"
    card = path.with_suffix(".md") if format_ is Format.SAFETENSORS else path.with_name(f"{path.name}.md")
    if card.exists() and not card.read_bytes().startswith(HEAD.encode()):
        raise UsageError(f"{card} is no model card of affsup, and is not overwritten: take another --out")
    text = model_card(trained, result, path.name)
    if format_ is Format.SAFETENSORS:
        export_trained(trained, path)
    else:
        console.print(_write_onnx(trained, path, size), markup=False)
    write_out(card, text.encode())
    console.print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MiB) and {card}", style="green", markup=False)
    if push is not None:
        console.print(f"uploaded to {hub.push(push, path, card)}", style="green", markup=False)


def _write_onnx(trained: TrainedModel, path: Path, size: str | None) -> str:
    """Write an ONNX file, and return a sentence on the difference to PyTorch."""
    import re

    from affsup_cli.runs.folder import write_out
    from affsup_cli.tasks.onnx_export import SUFFIX, export_onnx, is_onnx_export
    from data_prep.errors import UsageError

    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size or "1x1")
    if not sides:
        raise UsageError(f"--size {size}: expected width and height in pixels, such as 1000x600")
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: expected a name that ends in {SUFFIX}")
    model = export_onnx(trained, (int(sides[1]), int(sides[2])) if size else None)
    if path.exists() and not is_onnx_export(path):
        raise UsageError(f"{path} is no file that `affsup export` wrote, and is not overwritten: take another --out")
    write_out(path, model.content)
    return model.parity

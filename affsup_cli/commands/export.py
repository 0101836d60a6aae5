"""`affsup export`: a trained model as one file to pass on, with a page that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affsup_cli.options import RUNS_DIR, RunsDir, expand_user, run_path


def export(
    run: Annotated[str, typer.Argument(help="Finished run folder, or its name under --runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            callback=expand_user,
            help="File to write.  [default: exports/<run's name>.safetensors]",
        ),
    ] = None,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Write a run's model into one file, with its recipe and numbers inside.

    The file is safetensors, which other programs read too; beside it lies FILE.md, a model card. `affsup predict` and
    `affsup train scene --pretrained` take the file in place of the run.

    \b
    affsup export relnet-voc07-resnet101-focal-seed0-3f2a91c0
    affsup export runs/my-run --out shared/detector.safetensors
    """
    from affsup_cli.runs.export import export_trained, open_trained
    from affsup_cli.runs.folder import RunFolder, write_out
    from affsup_cli.runs.results import read_train_result
    from affsup_cli.views.console import console
    from affsup_cli.views.model_card import HEAD, model_card
    from data_prep.errors import UsageError

    folder = RunFolder.open(run_path(run, runs))
    result = read_train_result(folder)
    trained = open_trained(folder.path)
    path = out or Path("exports") / f"{folder.name}.safetensors"
    card = path.with_suffix(".md")
    if card.exists() and not card.read_bytes().startswith(HEAD.encode()):
        raise UsageError(f"{card} is no model card of affsup, and is not overwritten: take another --out")
    text = model_card(trained, result, path.name)
    export_trained(trained, path)
    write_out(card, text.encode())
    console.print(f"written: {path} ({path.stat().st_size / 2**20:.1f} MiB) and {card}", style="green", markup=False)

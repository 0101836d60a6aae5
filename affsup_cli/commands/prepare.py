"""`affsup prepare`: official files to a prepared data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_dataset
from affsup_cli.options import DATA_DIR, DataDir

if TYPE_CHECKING:
    from rich.console import Console

    from data_prep.build import PrepareResult
    from data_prep.store import AnyManifest


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Name of the data set; `affsup list datasets` prints them.", autocompletion=complete_dataset
        ),
    ],
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="The official archive, or the folder extracted from it; for scenes one or more folders or archives "
            "with all official files. Without it, the archives are downloaded if that is possible.",
        ),
    ] = None,
    data: DataDir = DATA_DIR,
    check: Annotated[bool, typer.Option("--check", help="Verify the prepared data set; change nothing.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Take N of the official training images, drawn at random."),
    ] = None,
) -> None:
    """Prepare a data set from its official files.

    The files are read, split and stored with a manifest of their content. For labelled images, a fixed tenth of the
    official training images becomes the validation split. For scenes, every image is opened once; images that are
    damaged, missing or of another size than annotated are left out, counted and named. A data set that is already
    prepared in the same way is not prepared again.

    \b
    affsup prepare digits
    affsup prepare cifar10
    affsup prepare cifar10 --from cifar-10-python.tar.gz
    affsup prepare cifar100 --from downloads/cifar-100-python
    affsup prepare tiny-imagenet --limit 10000
    affsup prepare shapes
    affsup prepare shape-scenes
    affsup prepare voc07 --from VOCdevkit
    affsup prepare coco --from coco --limit 30000
    affsup prepare vg --from VG_100K --from VG_100K_2 --from annotations
    affsup prepare mit67 --from indoorCVPR_09.tar --from lists
    affsup prepare cifar10 --check
    """
    import data_prep
    from affsup_cli.views.console import console
    from affsup_cli.views.split_table import empty_category_lines, left_out_lines, split_table
    from data_prep.errors import UsageError

    if check:
        if source or limit is not None:
            raise UsageError("--check verifies the prepared data set: it takes neither --from nor --limit")
        manifest, folder, status = data_prep.check(dataset, data), data / dataset, "verified"
    else:
        outcome = _with_progress(console, dataset, source or [], data, limit)
        manifest, folder, status = outcome.manifest, outcome.folder, outcome.status
    console.print(split_table(manifest))
    for line in left_out_lines(manifest):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in empty_category_lines(manifest):
        console.print(f"warning: {line}", style="yellow", markup=False)
    console.print(f"source: {', '.join(manifest.source.files) or manifest.source.kind}", markup=False, highlight=False)
    console.print(_checksum_line(manifest))
    if not manifest.complete:
        counts, official = manifest.image_counts(), manifest.official_counts
        files = "" if manifest.source.kind == "embedded" else "give the official files with --from, or "
        console.print(
            f"incomplete: {counts['train'] + counts.get('val', 0):,} of {official['train']:,} training "
            f"images, {counts['test']:,} of {official['test']:,} test images; for the complete data set, {files}"
            f"delete {folder} and prepare again",
            markup=False,
        )
    console.print(f"{status}: {folder}", markup=False, highlight=False, soft_wrap=True)


def _with_progress(console: Console, dataset: str, sources: list[Path], data: Path, limit: int | None) -> PrepareResult:
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    import data_prep

    amounts = {"download": ("downloading", 1e6, "MB"), "images": ("writing", 1, "images")}
    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)

    def show(step: str, done: int, total: int) -> None:
        description, scale, unit = amounts[step]
        if step not in tasks:
            bar.start()  # only now: an empty progress display would print an empty line
            tasks[step] = bar.add_task(description, total=total / scale, unit=unit)
        bar.update(tasks[step], completed=done / scale, total=total / scale)

    try:
        return data_prep.prepare(dataset, sources=sources, data_dir=data, limit=limit, progress=show)
    finally:
        bar.live.stop()  # Progress.stop would print an empty line into a file or pipe


def _checksum_line(manifest: AnyManifest) -> str:
    source = manifest.source
    if source.official is None:
        return "official checksum: not known for this source"
    if source.official:
        return f"official checksum: matched ({source.algorithm})"
    return f"[yellow]official checksum: not matched ({source.algorithm}); these are not the official files[/]"

"""`affsup prepare`: official files to a prepared data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affsup_cli.completion import complete_dataset
from affsup_cli.options import DataDir, expand_user
from affsup_cli.resolve import DATA_DIR

if TYPE_CHECKING:
    from rich.console import Console

    from data_prep.build import PrepareResult
    from data_prep.raw import AnyDataSet
    from data_prep.store import AnyManifest


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET|LAYOUT|FILE.py",
            help="Name of a data set (`affsup list datasets`); for your own files their layout: folder, coco-json, "
            "coco-parquet or voc-xml; or a Python file that defines DATASET.",
            autocompletion=complete_dataset,
        ),
    ],
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PATH",
            callback=expand_user,
            help="The official archive, or the folder extracted from it; for scenes one or more folders or archives "
            "with all official files; or hf://datasets/OWNER/NAME, a data set of the Hugging Face hub. Without it, the "
            "archives are downloaded if that is possible.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of a data set in a layout.")] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="N", help="Layout folder: pixels per side of the images.  [default: 64]"),
    ] = None,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Scenes: leave out images without a related pair.")
    ] = False,
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
    affsup prepare tiny-imagenet --from hf://datasets/zh-plus/tiny-imagenet
    affsup prepare shapes
    affsup prepare shape-scenes
    affsup prepare voc07 --from VOCdevkit
    affsup prepare coco --from coco --limit 30000
    affsup prepare vg --from VG_100K --from VG_100K_2 --from annotations
    affsup prepare mit67 --from indoorCVPR_09.tar --from lists
    affsup prepare cifar10 --check
    affsup prepare folder --from photos --name mine --size 64
    affsup prepare coco-json --from DIR --name mine
    affsup prepare voc-xml --from DIR --name mine
    affsup prepare letters.py --from DIR
    """
    import data_prep
    from affsup_cli.views.console import console, print_warning
    from affsup_cli.views.split_table import empty_category_lines, left_out_lines, split_table
    from data_prep.errors import UsageError

    if check:
        if source or limit is not None or size is not None or drop_empty:
            raise UsageError("--check verifies the prepared data set: it takes no option but --data and --name")
        checked = name or dataset
        manifest, folder, status = data_prep.check(checked, data), data / checked, "verified"
    else:
        outcome = _with_progress(console, _find(dataset, name, size), source or [], data, limit, drop_empty)
        manifest, folder, status = outcome.manifest, outcome.folder, outcome.status
    console.print(split_table(manifest))
    for line in left_out_lines(manifest):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in empty_category_lines(manifest):
        print_warning(line)
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


def _find(dataset: str, name: str | None, size: int | None) -> AnyDataSet:
    """Return the data set for the command's argument: a layout, a Python file, or the name of an installed one."""
    import data_prep
    from data_prep.errors import UsageError
    from data_prep.layouts import LAYOUT_NAMES, own_data_set

    if dataset in LAYOUT_NAMES:
        if name is None:
            raise UsageError(f"--name is missing: affsup prepare {dataset} --from DIR --name mine")
        if name in data_prep.datasets():
            raise UsageError(f"--name {name} is the name of another data set: choose your own")
        return own_data_set(dataset, name, size)
    if name is not None or size is not None:
        option = "--name" if name is not None else "--size"
        raise UsageError(f"{option} is for the layouts {', '.join(LAYOUT_NAMES)}, found {dataset}")
    if dataset.endswith(".py"):
        return data_prep.load_file(Path(dataset).expanduser())
    return data_prep.get(dataset)


def _with_progress(
    console: Console, dataset: AnyDataSet, sources: list[Path], data: Path, limit: int | None, drop_empty: bool
) -> PrepareResult:
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
        return data_prep.prepare(
            dataset, sources=sources, data_dir=data, limit=limit, drop_empty=drop_empty, progress=show
        )
    finally:
        bar.live.stop()  # Progress.stop would print an empty line into a file or pipe


def _checksum_line(manifest: AnyManifest) -> str:
    source = manifest.source
    if source.official is None:
        return "official checksum: not known for this source"
    if source.official:
        return f"official checksum: matched ({source.algorithm})"
    return f"[yellow]official checksum: not matched ({source.algorithm}); these are not the official files[/]"

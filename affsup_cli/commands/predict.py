"""`affsup predict`: objects and relations, classes or scene categories of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affsup_cli.completion import complete_run
from affsup_cli.options import Device, RunsDir, expand_user
from affsup_cli.resolve import RUNS_DIR, model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from affsup_cli.recipe import MinibatchRecipe, SceneRecipe
    from affsup_cli.runs.export import TrainedModel
    from affsup_cli.tasks.detection.prediction import Prediction

_CATEGORIES_SAID = 3
SHEET = "contact-sheet"


def predict(
    run: Annotated[
        str,
        typer.Argument(
            help="Run folder, its name under --runs, or a file of `affsup export`.", autocompletion=complete_run
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", callback=expand_user, help="Pictures (JPEG, PNG, ...), and folders of pictures."
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Class of the reference object, whose partners are shown; default: the most confident detection."
        ),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Minimum score of a detection.")] = 0.3,
    top: Annotated[int, typer.Option(min=1, help="Classifiers: number of most probable classes to write.")] = 5,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, callback=expand_user, help="Folder for pictures and JSON.")
    ] = Path("predictions"),
    device: Device = None,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Classify pictures, or find objects in them and the relations of one of them.

    A detector (frcnn, relnet, relpn) writes NAME.png: the reference object in blue, its strongest partners (proposals)
    in orange with the share of its attention in red, in the manner of figure 1, other detections in grey; and NAME.json
    with all boxes, classes, scores and weights. Partners with less than an even share, 1 / (proposals - 1), are left
    out. A classifier (minibatch) writes NAME.json with the most probable classes, and contact-sheet.png; a run of scene
    writes NAME.json with the categories.

    \b
    affsup predict relnet-voc07-resnet101-focal-seed0-3f2a91c0 holiday.jpg
    affsup predict runs/my-run photos --reference person --out seen
    affsup predict runs/my-classifier photos --top 3
    affsup predict exports/my-run.safetensors holiday.jpg
    """
    from affsup_cli.recipe import MinibatchRecipe, SceneRecipe
    from affsup_cli.runs.export import open_trained
    from affsup_cli.tasks.pictures import pictures_in
    from data_prep.errors import UsageError

    trained = open_trained(model_path(run, runs))
    images = pictures_in(images)
    stems = [image.stem for image in images]
    if repeated := {stem for stem in stems if stems.count(stem) > 1}:
        raise UsageError(f"several pictures are called {min(repeated)}: their results would overwrite each other")
    given = {image.resolve() for image in images}
    for stem in (*stems, SHEET):
        for written in (out / f"{stem}.png", out / f"{stem}.json"):
            if written.resolve() in given:
                raise UsageError(f"--out {out} would overwrite the picture {written}: name another folder")
    if reference is not None and isinstance(trained.recipe, SceneRecipe | MinibatchRecipe):
        raise UsageError(f"--reference {reference}: a run of {trained.recipe.task} has no objects")
    if isinstance(trained.recipe, MinibatchRecipe):
        _classify(trained, trained.recipe, device or "auto", images, top, out)
        return
    if isinstance(trained.recipe, SceneRecipe):
        predict_one = _predicting_category(trained, trained.recipe, device or "auto", out)
    else:
        predict_one = _predicting_objects(trained, device or "auto", reference, score, out)
    _each(images, predict_one)


def _each(images: Sequence[Path], predict_one: Callable[[Path], None]) -> None:
    """Go on past a picture that cannot be read, and name it at the end."""
    from data_prep.errors import AffsupError, UsageError

    failures = []
    for image in images:
        try:
            predict_one(image)
        except UsageError:
            raise
        except AffsupError as error:
            failures.append(str(error))
    if failures:
        raise AffsupError("\n".join(failures))


def _classify(
    trained: TrainedModel, recipe: MinibatchRecipe, device: str, images: Sequence[Path], top: int, out: Path
) -> None:
    """Write the `top` classes of each picture, and all pictures with the first of them on a contact sheet."""
    from affsup_cli.reporting.render.contact_sheet import contact_sheet, thumbnail
    from affsup_cli.runs.folder import write_out
    from affsup_cli.tasks.classifier_prediction import ClassifierPredictor
    from affsup_cli.tasks.pictures import open_for_prediction
    from affsup_cli.views.console import console

    predictor = ClassifierPredictor(trained, recipe, device)
    tiles = []

    def predict_one(path: Path) -> None:
        image = open_for_prediction(path)
        classes = {name: round(share, 4) for name, share in list(predictor.predict(image).items())[:top]}
        _write_json({"image": str(path), "classes": classes}, out / f"{path.stem}.json")
        (first, share), *_ = classes.items()
        tiles.append((thumbnail(image), f"{first} {share:.2f}"))
        likeliest = ", ".join(f"{name} {share:.2f}" for name, share in classes.items())
        console.print(f"{path}: {likeliest}", markup=False)
        console.print(f"written: {out / path.stem}.json", style="green", markup=False)

    try:
        _each(images, predict_one)
    finally:
        if tiles:
            write_out(out / f"{SHEET}.png", contact_sheet(*zip(*tiles, strict=True)))
            console.print(f"written: {out / SHEET}.png", style="green", markup=False)


def _predicting_objects(
    trained: TrainedModel, device: str, reference: str | None, score: float, out: Path
) -> Callable[[Path], None]:
    from affsup_cli.tasks.detection.prediction import DetectionPredictor
    from affsup_cli.views.console import console
    from data_prep.errors import counted

    predictor = DetectionPredictor(trained, device)

    def predict_one(image: Path) -> None:
        prediction = predictor.predict(image, reference, score)
        _write(prediction, predictor.classes, out / image.stem)
        found = counted(len(prediction.boxes), "object")
        said = _in_words(prediction, predictor.classes, reference, score)
        console.print(f"{image}: {found}{said}", markup=False)
        console.print(f"written: {out / image.stem}.png and .json", style="green", markup=False)

    return predict_one


def _predicting_category(trained: TrainedModel, recipe: SceneRecipe, device: str, out: Path) -> Callable[[Path], None]:
    from affsup_cli.tasks.scene.prediction import ScenePredictor
    from affsup_cli.views.console import console

    predictor = ScenePredictor(trained, recipe, device)

    def predict_one(image: Path) -> None:
        categories = {name: round(share, 4) for name, share in predictor.predict(image).items()}
        _write_json({"image": str(image), "categories": categories}, out / f"{image.stem}.json")
        likeliest = ", ".join(f"{name} {share:.2f}" for name, share in list(categories.items())[:_CATEGORIES_SAID])
        console.print(f"{image}: {likeliest}", markup=False)
        console.print(f"written: {out / image.stem}.json", style="green", markup=False)

    return predict_one


def _in_words(prediction: Prediction, classes: Sequence[str], reference: str | None, score: float) -> str:
    partners = prediction.partners
    if not len(prediction.boxes) or (reference and reference not in [classes[label] for label in prediction.labels]):
        return f"; no {reference or 'object'} of score {score:g} or more: --score shows the less certain"
    if partners is None:
        return ""
    named = [f"{classes[label]} {weight:.3f}" for label, weight in zip(partners.labels, partners.weights, strict=True)]
    return f"; the {classes[prediction.labels[partners.reference]]} relates to {', '.join(named) or 'nothing'}"


def _rounded(box: Iterable[float]) -> list[float]:
    return [round(float(side), 2) for side in box]


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    import json

    from affsup_cli.runs.folder import write_out

    write_out(path, (json.dumps(content, indent=2) + "\n").encode())


def _write(prediction: Prediction, classes: Sequence[str], path: Path) -> None:
    from affsup_cli.reporting.render.relation_picture import picture_of_detections
    from affsup_cli.runs.folder import write_out

    partners = prediction.partners
    content = {
        "image": str(prediction.path),
        "size": [prediction.image.shape[1], prediction.image.shape[0]],
        "detections": [
            {"box": _rounded(box), "class": classes[label], "score": round(float(score), 4)}
            for box, label, score in zip(prediction.boxes, prediction.labels, prediction.scores, strict=True)
        ],
        "reference": partners.reference if partners else None,
        "partners": [
            {"box": _rounded(box), "class": classes[label], "weight": round(float(weight), 4)}
            for box, label, weight in zip(partners.boxes, partners.labels, partners.weights, strict=True)
        ]
        if partners
        else [],
    }
    _write_json(content, path.with_name(f"{path.name}.json"))
    write_out(
        path.with_name(f"{path.name}.png"),
        picture_of_detections(
            prediction.image,
            prediction.boxes,
            [
                f"{classes[label]} {score:.2f}"
                for label, score in zip(prediction.labels, prediction.scores, strict=True)
            ],
            partners.reference if partners else None,
            partners.boxes if partners else [],
            partners.weights if partners else [],
            [classes[label] for label in partners.labels] if partners else [],
        ),
    )

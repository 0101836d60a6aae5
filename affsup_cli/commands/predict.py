"""`affsup predict`: what a trained detector sees in anyone's own pictures, and what it relates to what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affsup_cli.completion import complete_run
from affsup_cli.options import RUNS_DIR, Device, RunsDir, model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from affsup_cli.recipe import SceneRecipe
    from affsup_cli.runs.export import Trained
    from affsup_cli.tasks.detection.prediction import Prediction

_CATEGORIES_SAID = 3


def predict(
    run: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_run,
            help="Run folder of frcnn, relnet, relpn or scene, its name under --runs, or a file of `affsup export`.",
        ),
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures: JPEG, PNG, ...")],
    reference: Annotated[
        str | None,
        typer.Option(help="Class of the object whose partners are shown; without it, of the most confident one."),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.3,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for pictures and JSON.")] = Path(
        "predictions"
    ),
    device: Device = None,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Find objects in pictures, and what one of them relates to; with a run of scene, what scene each picture is.

    Writes NAME.png, the reference object in blue, its strongest partners (proposals) in orange with the share of its
    attention in red, in the manner of figure 1, other detections in grey; and NAME.json with all boxes, classes, scores
    and weights. Partners with less than an even share, 1 / (proposals - 1), are left out.

    \b
    affsup predict relnet-voc07-resnet101-focal-seed0-3f2a91c0 holiday.jpg
    affsup predict runs/my-run *.jpg --reference person --out seen
    affsup predict exports/my-run.safetensors holiday.jpg
    """
    from affsup_cli.recipe import SceneRecipe
    from affsup_cli.runs.export import open_trained
    from data_prep.errors import UsageError

    trained = open_trained(model_path(run, runs))
    stems = [image.stem for image in images]
    if repeated := {stem for stem in stems if stems.count(stem) > 1}:
        raise UsageError(f"several pictures are called {min(repeated)}: their results would overwrite each other")
    for image in images:
        if not image.is_file():
            raise UsageError(f"no picture {image}")
    given = {image.resolve() for image in images}
    for stem in stems:
        for written in (out / f"{stem}.png", out / f"{stem}.json"):
            if written.resolve() in given:
                raise UsageError(f"--out {out} would overwrite the picture {written}: name another folder")
    if isinstance(trained.recipe, SceneRecipe):
        if reference is not None:
            raise UsageError(f"--reference {reference}: a run of scene names categories, no objects")
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


def _predicting_objects(
    trained: Trained, device: str, reference: str | None, score: float, out: Path
) -> Callable[[Path], None]:
    from affsup_cli.tasks.detection.prediction import Predictor
    from affsup_cli.views.console import console, counted

    predictor = Predictor(trained, device)

    def predict_one(image: Path) -> None:
        prediction = predictor.predict(image, reference, score)
        _write(prediction, predictor.classes, out / image.stem)
        found = counted(len(prediction.boxes), "object")
        said = _in_words(prediction, predictor.classes, reference, score)
        console.print(f"{image}: {found}{said}", markup=False)
        console.print(f"written: {out / image.stem}.png and .json", style="green", markup=False)

    return predict_one


def _predicting_category(trained: Trained, recipe: SceneRecipe, device: str, out: Path) -> Callable[[Path], None]:
    from affsup_cli.tasks.scene.prediction import ScenePredictor
    from affsup_cli.views.console import console

    predictor = ScenePredictor(trained, recipe, device)

    def predict_one(image: Path) -> None:
        categories = predictor.predict(image)
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
            {"box": box.tolist(), "class": classes[label], "score": float(score)}
            for box, label, score in zip(prediction.boxes, prediction.labels, prediction.scores, strict=True)
        ],
        "reference": partners.reference if partners else None,
        "partners": [
            {"box": box.tolist(), "class": classes[label], "weight": float(weight)}
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

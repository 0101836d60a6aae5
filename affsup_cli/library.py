"""Trained models and results in Python: `affsup_cli.load`, `runs`, `table` and `curves`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe, Recipe, SceneRecipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.index import RunIndex, TrainedRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


@dataclass(frozen=True)
class LoadedModel:
    """A trained model.

    Attributes:
        module: the network in evaluation mode on its device. A classifier maps the images `[N, C, H, W]` of
            `preprocess` to features `[N, d]` and logits `[N, classes]`.
        classes: their names, by index; of a scene classifier the categories.
        recipe: of its run.
        preprocess: of a classifier: from an RGB image, uint8 `[H, W, 3]`, to the input `[C, H, W]` of the module. None
            for detectors and scene classifiers, whose `predict` scales the image.
        predict: from the path of a picture to its probabilities by class (by category), in descending order; or to a
            `Prediction` of a detector.
    """

    module: nn.Module
    classes: list[str]
    recipe: Recipe
    preprocess: Callable[[NDArray[np.uint8]], Tensor] | None
    predict: Callable[[Path | str], Any]


def load(path: Path | str, device: str = "auto") -> LoadedModel:
    """Load the best model of a run folder, or a file of `affsup export`; its data set is not needed.

    Args:
        path: the folder or file.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: there is no such run or file, or no such device.
        AffsupError: it is damaged, or the run has no model yet.
    """
    from affsup_cli.runs.export import open_trained

    trained = open_trained(Path(path))
    recipe = trained.recipe
    if isinstance(recipe, MinibatchRecipe):
        from affsup_cli.tasks.classifier_prediction import ClassifierPredictor
        from affsup_cli.tasks.pictures import open_for_prediction

        classifier = ClassifierPredictor(trained, recipe, device)

        def classify(picture: Path | str) -> dict[str, float]:
            return classifier.predict(open_for_prediction(Path(picture)))

        return LoadedModel(classifier.model, trained.classes, recipe, classifier.preprocess, classify)
    if isinstance(recipe, SceneRecipe):
        from affsup_cli.tasks.scene.prediction import ScenePredictor

        scenes = ScenePredictor(trained, recipe, device)
        return LoadedModel(scenes.model, scenes.categories, recipe, None, lambda picture: scenes.predict(Path(picture)))
    if not isinstance(recipe, DetectionRecipe):
        raise AssertionError(f"no predictor for {type(recipe).__name__}")
    from affsup_cli.tasks.detection.prediction import DetectionPredictor

    detector = DetectionPredictor(trained, device)
    return LoadedModel(
        detector.model,
        list(detector.classes),
        recipe,
        None,
        lambda picture: detector.predict(Path(picture), reference=None, least=0.3),
    )


def runs(folder: Path | str = "runs") -> pd.DataFrame:
    """Return all runs in a folder, one a row: name, finished, the recipe's fields, and the metrics of finished runs.

    A run that cannot be read is left out; `affsup list runs` names it.
    """
    index = RunIndex(Path(folder))
    rows = []
    for run in (*index.trained, *index.unfinished):
        metrics = run.result.metrics if isinstance(run, TrainedRun) else {}
        rows.append({"run": run.folder.name, "finished": isinstance(run, TrainedRun), **run.recipe.flat(), **metrics})
    return pd.DataFrame(rows)


def table(name: str, folder: Path | str = "runs") -> pd.DataFrame:
    """Return the numbers of a table or figure from the runs in a folder, as `affsup report` writes them to NAME.csv.

    Raises:
        UsageError: there is no such table or figure.
    """
    from affsup_cli.reporting.report import build_report

    with tempfile.TemporaryDirectory(prefix="affsup-") as out:
        build_report(name, RunIndex(Path(folder)), Path(out), ("csv",))
        return pd.read_csv(Path(out) / f"{name}.csv")


def curves(run: Path | str) -> pd.DataFrame:
    """Return the metrics of a run, one epoch a row.

    Raises:
        UsageError: the folder is not a run.
        AffsupError: its metrics are damaged.
    """
    return pd.DataFrame(RunFolder.open(Path(run)).metrics())

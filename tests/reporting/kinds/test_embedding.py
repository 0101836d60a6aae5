from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_score

from affsup_cli.reporting.kinds.embedding import build_embedding
from affsup_cli.reporting.render.document import DASH, Content
from affsup_cli.reporting.select.spec import EmbeddingSpec, load_spec
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import AFFINITY, BASE, RunMaker, blobs
from tests.reporting.pictures import has_colour, pixels

FEW = blobs(40, 4)


def figure6(make: RunMaker) -> Content:
    spec = load_spec("figure6")
    assert isinstance(spec, EmbeddingSpec)
    return build_embedding(spec, RunIndex(make.root))


def frame(content: Content, ending: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content.files[ending]))


def test_without_runs_there_are_no_files(make: RunMaker) -> None:
    assert figure6(make).files == {}


def test_both_networks_are_embedded_with_scores_of_their_features(make: RunMaker) -> None:
    tight, loose = blobs(120, 10, spread=0.5), blobs(120, 10, spread=4.0)
    make.train(BASE, 0.9, features=loose)
    make.train(AFFINITY, 0.92, features=tight)
    content = figure6(make)
    points = frame(content, ".csv")
    assert list(points.columns) == ["panel", "index", "x", "y", "label"]
    assert points.groupby("panel").size().to_dict() == {"affinity": 120, "base": 120}
    assert list(points[points["panel"] == "base"]["label"]) == list(loose[1])
    scores = frame(content, ".scores.csv").set_index("panel")
    for panel, (features, labels) in (("base", loose), ("affinity", tight)):
        exact = features.astype(np.float64)
        distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)
        np.fill_diagonal(distances, np.inf)
        right = (labels[distances.argmin(axis=1)] == labels).mean()
        assert scores.loc[panel, "nearest_neighbour_accuracy"] == pytest.approx(right)
        assert scores.loc[panel, "silhouette"] == pytest.approx(silhouette_score(exact, labels), abs=1e-4)
    png = content.files[".png"]
    assert pixels(png).shape[0] == 780
    assert all(has_colour(png, colour) for colour in ("#3f90da", "#ffa90e", "#832db6"))


def test_the_same_runs_give_the_same_bytes(make: RunMaker) -> None:
    make.train(BASE, 0.9, features=FEW)
    assert figure6(make).files == figure6(make).files


def test_both_pictures_are_of_the_lowest_seed_that_both_have(make: RunMaker) -> None:
    for seed in (0, 2, 3):
        make.train(BASE, 0.9, seed, features=FEW)
    for seed in (3, 2):
        make.train(AFFINITY, 0.9, seed, features=FEW)
    assert set(frame(figure6(make), ".scores.csv")["seed"]) == {2}


def test_a_network_without_a_run_is_a_dash_and_a_note(make: RunMaker) -> None:
    make.train(AFFINITY, 0.9, seed=4, features=FEW)
    content = figure6(make)
    assert content.tables[0].rows[0] == ("base CNN", DASH, DASH, DASH)
    assert content.notes == ("no run of seed 4 for base CNN",)


def test_a_departed_run_carries_a_mark(make: RunMaker) -> None:
    make.train({**AFFINITY, "train.epochs": 3}, 0.9, features=FEW)
    content = figure6(make)
    assert content.tables[0].rows[1][1].endswith(" ᵃ")
    assert frame(content, ".scores.csv")["marks"].tolist() == ["ᵃ"]
    assert content.footnotes == ("ᵃ train.epochs = 3 instead of 200",)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (None, "no features.npz"),
        ((np.full((40, 8), np.inf, dtype=np.float16), FEW[1]), "not finite"),
        ((FEW[0], FEW[1][:7]), "(40, 64) with labels (7,)"),
        ((FEW[0][:5], FEW[1][:5]), "5 images of 4 classes"),
        ((FEW[0], np.zeros(40, dtype=np.int64)), "40 images of 1 classes"),
    ],
)
def test_features_that_cannot_be_used_are_named(make: RunMaker, features: Any, said: str) -> None:
    make.train(BASE, 0.9, features=features)
    content = figure6(make)
    assert content.files == {}
    assert said in content.notes[0]


def test_a_damaged_features_file_is_named(make: RunMaker) -> None:
    run = make.train(BASE, 0.9, features=FEW)
    run.features.write_bytes(run.features.read_bytes()[:100])
    assert "features.npz is damaged" in figure6(make).notes[0]

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from affsup_cli.reporting.kinds.relations import build_relations
from affsup_cli.reporting.render.document import Content
from affsup_cli.reporting.render.relation_picture import PARTNER_COLOUR, REFERENCE_COLOUR
from affsup_cli.reporting.select.spec import RelationsSpec, load_spec
from affsup_cli.runs.examples import Example, write_examples
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_examples import CLASSES, DOG, PERSON, SHEEP, make_example
from tests.reporting.fake_runs import RunMaker
from tests.reporting.pictures import has_colour, pixels

AFFINITY = {"data.name": "voc07"}
BASE = {**AFFINITY, "affinity.loss": "none"}
EXAMPLES = [make_example(number, [SHEEP, PERSON, DOG]) for number in range(5)]


def trained(make: RunMaker, overrides: dict[str, Any], examples: list[Example] | None, seed: int = 0) -> RunFolder:
    run = make.finish(overrides, {"test_map_all": 0.5}, seed, recipe_name="relnet")
    if examples is not None:
        write_examples(run.examples, CLASSES, examples)
    return run


def build(make: RunMaker, name: str = "figure1", **changes: Any) -> Content:
    spec = load_spec(name)
    assert isinstance(spec, RelationsSpec)
    return build_relations(spec.model_copy(update=changes), RunIndex(make.root))


def frame(content: Content) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content.files[".csv"]))


def test_without_runs_there_are_no_files(make: RunMaker) -> None:
    assert build(make).files == {}


def test_both_networks_are_drawn_on_the_same_images(make: RunMaker) -> None:
    trained(make, BASE, EXAMPLES)
    trained(make, AFFINITY, EXAMPLES)
    content = build(make)
    numbers = frame(content)
    assert numbers.groupby("panel")["image_id"].unique().map(list).to_dict() == {
        "affinity": [0, 1, 2],
        "base": [0, 1, 2],
    }
    png = content.files[".png"]
    assert has_colour(png, REFERENCE_COLOUR, least=200)
    assert has_colour(png, PARTNER_COLOUR, least=200)
    assert "runs store" not in " ".join(content.notes)


def test_the_numbers_drawn_are_written(make: RunMaker) -> None:
    run = trained(make, BASE, EXAMPLES)
    numbers = frame(build(make)).head(3)
    assert list(numbers["box"]) == ["reference", "partner 1", "partner 2"]
    assert list(numbers["class"]) == ["sheep", "person", "dog"]
    assert np.isnan(numbers["weight"][0])
    assert list(numbers["weight"][1:]) == [0.5, 0.25]
    corners = numbers[["x1", "y1", "x2", "y2"]].to_numpy()
    example = EXAMPLES[0]
    np.testing.assert_allclose(corners, [example.reference_boxes[0], *example.gt_boxes[1:]], rtol=1e-6)
    assert set(numbers["run"]) == {run.name}


def test_the_reference_is_the_object_with_the_most_partners_the_first_of_equals(make: RunMaker) -> None:
    trained(make, BASE, [make_example(0, [DOG, SHEEP, DOG, DOG]), make_example(1, [SHEEP, DOG, SHEEP, DOG])])
    numbers = frame(build(make))
    references = numbers[numbers["box"] == "reference"]
    assert list(references["class"]) == ["sheep", "sheep"]
    assert references["x1"].tolist() == [51, 1]


def test_where_relations_have_a_direction_the_reference_is_the_most_frequent_subject(make: RunMaker) -> None:
    example = make_example(0, [DOG, SHEEP, PERSON])
    trained(make, BASE, [dataclasses.replace(example, gt_pairs=np.array([[0, 1], [2, 0], [2, 1]]))])
    assert frame(build(make))["class"][0] == "person"


def test_an_object_that_one_network_does_not_propose_is_no_reference(make: RunMaker) -> None:
    both = [DOG, SHEEP, PERSON]
    missed = make_example(0, both)
    missed.reference_boxes[0] += 30
    nothing = make_example(1, both)
    nothing.reference_boxes[:] += 30
    trained(make, BASE, [make_example(0, both), make_example(1, both)])
    trained(make, AFFINITY, [missed, nothing])
    numbers = frame(build(make))
    references = numbers[numbers["box"] == "reference"]
    assert list(references["class"]) == ["sheep", "sheep"]
    assert set(numbers["image_id"]) == {0}


def test_a_partner_on_no_object_has_no_class(make: RunMaker) -> None:
    example = make_example(0, [SHEEP, DOG], partners=1)
    example.partner_boxes[0, 0] = [150, 30, 190, 50]
    trained(make, BASE, [example])
    content = build(make)
    assert frame(content)["class"].isna().tolist() == [False, True]
    assert content.tables[0].rows[0] == ("image0.jpg", "sheep", "– 0.500")


def test_figure7_goes_on_after_figure1(make: RunMaker) -> None:
    trained(make, BASE, EXAMPLES)
    content = build(make, "figure7")
    assert frame(content)["image_id"].unique().tolist() == [3, 4]
    assert content.notes == (
        "no run of seed 0 for RelNet + L_G",
        "the runs store 5 images with a related object that all of them propose: 2 of 8 are shown",
    )


def test_where_no_image_is_left_there_is_no_figure(make: RunMaker) -> None:
    trained(make, BASE, EXAMPLES[:2])
    content = build(make, skip=2)
    assert content.files == {}
    assert "the runs store 2 images with a related object that all of them propose: 0 of 3 are shown" in content.notes


def test_an_image_without_relations_or_of_one_run_alone_is_passed_over(make: RunMaker) -> None:
    alone = make_example(9, [SHEEP, SHEEP])
    trained(make, BASE, [alone, *EXAMPLES[:3]])
    trained(make, AFFINITY, [alone, *EXAMPLES[1:]])
    assert frame(build(make))["image_id"].unique().tolist() == [1, 2]


def test_more_images_stand_in_more_columns(make: RunMaker) -> None:
    trained(make, BASE, [make_example(number, [SHEEP, DOG]) for number in range(6)])
    few, many = (pixels(build(make, images=images).files[".png"]).shape for images in (4, 6))
    assert many[1] > 1.9 * few[1]
    assert many[0] < few[0]


def test_an_object_without_partners_is_drawn_alone(make: RunMaker) -> None:
    trained(make, BASE, [make_example(0, [SHEEP, DOG], partners=0)])
    assert build(make).tables[0].rows == (("image0.jpg", "sheep", "–"),)


def test_all_pictures_are_of_the_lowest_seed_that_both_have(make: RunMaker) -> None:
    for seed in (0, 2, 3):
        trained(make, BASE, EXAMPLES, seed)
    for seed in (3, 2):
        trained(make, AFFINITY, EXAMPLES, seed)
    content = build(make)
    assert {run.recipe.seed for run in content.used} == {2}
    assert "seed 2" in content.caption


def test_a_departed_run_carries_a_mark(make: RunMaker) -> None:
    trained(make, {**BASE, "train.epochs": 7}, EXAMPLES)
    content = build(make)
    assert content.tables[0].header == ("image", "reference", "RelNet ᵃ")
    assert content.footnotes == ("ᵃ train.epochs = 7 instead of 8",)
    assert set(frame(content)["marks"]) == {"ᵃ"}


@pytest.mark.parametrize(("examples", "said"), [(None, "examples.h5 is missing"), ([], "holds no image")])
def test_a_run_without_examples_is_left_out(make: RunMaker, examples: list[Example] | None, said: str) -> None:
    trained(make, BASE, examples)
    content = build(make)
    assert content.files == {}
    assert said in content.notes[0]


def test_the_same_runs_give_the_same_bytes(make: RunMaker) -> None:
    trained(make, BASE, EXAMPLES)
    assert build(make).files == build(make).files


def test_weights_of_the_run_are_those_drawn(make: RunMaker) -> None:
    stronger = [dataclasses.replace(example, partner_weights=example.partner_weights * 2) for example in EXAMPLES]
    trained(make, BASE, EXAMPLES)
    trained(make, AFFINITY, stronger)
    weights = frame(build(make)).dropna(subset="weight").groupby("panel")["weight"].max()
    assert weights.to_dict() == {"affinity": 1.0, "base": 0.5}

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pandas as pd

from affsup_cli.reporting.kinds.targets import build_targets
from affsup_cli.reporting.render.document import Content
from affsup_cli.reporting.render.relation_picture import PARTNER_COLOUR, REFERENCE_COLOUR
from affsup_cli.reporting.select.spec import TargetsSpec, load_spec
from affsup_cli.runs.examples import Example, write_examples
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_examples import CLASSES, DOG, PERSON, SHEEP, make_example
from tests.reporting.fake_runs import RunMaker
from tests.reporting.pictures import has_colour


def figure9(make: RunMaker, *examples: Example) -> Content:
    if examples:
        run = make.finish({"data.name": "voc07"}, {"test_map_all": 0.5}, recipe_name="relnet")
        write_examples(run.examples, CLASSES, examples)
    spec = load_spec("figure9")
    assert isinstance(spec, TargetsSpec)
    return build_targets(spec, RunIndex(make.root))


def roles(content: Content) -> dict[str, list[str | None]]:
    """The role of each object, by target."""
    numbers = pd.read_csv(io.BytesIO(content.files[".csv"]), keep_default_na=False)
    return {str(target): [role or None for role in rows["role"]] for target, rows in numbers.groupby("target")}


def test_without_runs_there_are_no_files(make: RunMaker) -> None:
    assert figure9(make).files == {}


def test_another_of_the_same_class_is_related_by_instance_alone(make: RunMaker) -> None:
    content = figure9(make, make_example(1, [SHEEP, PERSON, SHEEP, DOG]))
    assert roles(content) == {
        "different-category": [None, "related", "reference", "related"],
        "different-instance": ["related", "related", "reference", "related"],
    }
    assert content.tables[0].rows == (
        ("different category supervision", "sheep", "person, dog"),
        ("different instance supervision", "sheep", "sheep, person, dog"),
    )
    png = content.files[".png"]
    assert has_colour(png, REFERENCE_COLOUR, least=100)
    assert has_colour(png, PARTNER_COLOUR, least=100)


def test_the_image_with_the_fewest_fitting_objects_is_drawn(make: RunMaker) -> None:
    one_class, lone, many, few = [SHEEP, SHEEP], [SHEEP, DOG], [SHEEP, SHEEP, DOG, DOG], [SHEEP, SHEEP, DOG]
    labels = (one_class, lone, many, few, few)
    content = figure9(make, *(make_example(number, each) for number, each in enumerate(labels)))
    assert "Image image3.jpg" in content.caption


def test_the_reference_is_the_largest_object_of_a_class_with_two(make: RunMaker) -> None:
    content = figure9(make, make_example(1, [SHEEP, DOG, SHEEP, PERSON]))
    assert roles(content)["different-category"].index("reference") == 2


def test_annotated_relations_play_no_part(make: RunMaker) -> None:
    unrelated = dataclasses.replace(make_example(1, [SHEEP, SHEEP, DOG]), gt_pairs=np.zeros((0, 2), dtype=np.int64))
    assert "image1.jpg" in figure9(make, unrelated, make_example(2, [SHEEP, SHEEP, DOG])).caption


def test_where_no_image_fits_that_is_said(make: RunMaker) -> None:
    content = figure9(make, make_example(1, [SHEEP, DOG]))
    assert content.files == {}
    assert "stores no image" in content.notes[-1]


def test_the_same_runs_give_the_same_bytes(make: RunMaker) -> None:
    example = make_example(1, [SHEEP, DOG, SHEEP])
    assert figure9(make, example).files == figure9(make).files

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name, needs = request.param
    for library in needs:
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.mark.parametrize(
    "example",
    [
        ("plain_loop", []),
        ("metric_learning", ["pytorch_metric_learning"]),
        ("lightning_loop", ["pytorch_lightning"]),
        ("huggingface_trainer", ["transformers", "accelerate"]),
    ],
    indirect=True,
    ids=lambda parameter: parameter[0],
)
def test_training_moves_the_classes_together(example: ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the other libraries
        results = example.main(steps=60)
    assert results["mass after"] > results["mass before"] + 0.2


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "plain_loop",
        "metric_learning",
        "lightning_loop",
        "huggingface_trainer",
        "query_attention",  # tests/examples/test_query_attention.py
    }

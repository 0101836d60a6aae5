from __future__ import annotations

import dataclasses
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from affsup_cli.models.scene import SceneClassifier
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.export import TrainedModel, export_trained, open_trained
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.stop import Stopped
from affsup_cli.tasks import build_task
from affsup_cli.tasks.launch import evaluate_run, train_run
from affsup_cli.tasks.scene.task import SceneTask
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError, UsageError
from data_prep.store import read_scene_manifest, read_scenes
from tests.small_scenes import small_scene


def build(data: Path, part_a: Path, **fields: Any) -> SceneTask:
    task = build_task(small_scene(**fields), data, network=open_trained(part_a))
    assert isinstance(task, SceneTask)
    return task


def test_part_a_has_the_weights_of_the_run(shape_scenes: Path, part_a: Path) -> None:
    task = build(shape_scenes, part_a)
    trained = open_trained(part_a).state(torch.device("cpu"))
    held = {f"detector.{key}": value for key, value in task.model.part_a.state_dict().items()}
    assert set(trained) - set(held) == {
        f"detector.head.{layer}.{part}" for layer in ("classifier", "regressor") for part in ("weight", "bias")
    }
    assert all(torch.equal(value, trained[key]) for key, value in held.items())


def test_a_step_classifies_the_categories_of_its_images(shape_scenes: Path, part_a: Path) -> None:
    task = build(shape_scenes, part_a)
    task.begin_epoch(0)
    manifest = read_scene_manifest(shape_scenes / "shape-scenes")
    scenes = read_scenes(shape_scenes / "shape-scenes", manifest, "train")
    entries = task._plan[0]
    pictures = []
    for index, mirrored in entries:
        scaled = np.array(Image.fromarray(scenes.pixels(index)).resize((64, 64), Image.Resampling.BILINEAR))
        picture = torch.from_numpy(scaled).permute(2, 0, 1)[None].float()
        pictures.append(picture.flip(3) if mirrored else picture)
    wanted = torch.tensor([scenes.categories[index] for index, _ in entries])
    described = torch.stack([task.model.part_a_features(picture, (64, 64)) for picture in pictures])
    found = task.losses(0)
    torch.testing.assert_close(found.main["class_loss"], F.cross_entropy(task.model(described), wanted))


def test_an_epoch_passes_every_image_and_its_mirror_image_once(shape_scenes: Path, part_a: Path) -> None:
    task = build(shape_scenes, part_a)
    task.begin_epoch(0)
    first = list(chain.from_iterable(task._plan))
    assert sorted(first) == [(index, mirrored) for index in range(28) for mirrored in (False, True)]
    task.begin_epoch(1)
    assert list(chain.from_iterable(task._plan)) != first
    assert task.steps == 14


def test_part_a_sees_each_image_once_in_a_run(undescribed: Path, part_a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    whole = SceneClassifier.part_a_features

    def counted(self: SceneClassifier, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append(images.numpy().tobytes())
        return whole(self, images, size)

    monkeypatch.setattr(SceneClassifier, "part_a_features", counted)
    task = build(undescribed, part_a)
    for epoch in range(3):
        task.begin_epoch(epoch)
        for step in range(task.steps):
            task.losses(step)
    assert len(seen) == len(set(seen)) == 56


def test_what_part_a_says_does_not_depend_on_the_order(undescribed: Path, part_a: Path) -> None:
    task, other = (build(undescribed, part_a, seed=seed) for seed in (0, 1))
    for each in (task, other):
        each.begin_epoch(0)
        for step in range(each.steps):
            each.losses(step)
        shutil.rmtree(undescribed / ".features")
    found, again = task._train_features._features, other._train_features._features
    assert found.keys() == again.keys()
    assert all(torch.equal(found[key], again[key]) for key in found)


def test_accuracy_counts_images_and_its_mean_over_categories_counts_categories(
    shape_scenes: Path, undescribed: Path, part_a: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build(undescribed, part_a)
    manifest = read_scene_manifest(shape_scenes / "shape-scenes")
    train = read_scenes(shape_scenes / "shape-scenes", manifest, "train")
    categories = np.array([0, 0, 0, 1] + [0] * 24)
    uneven = dataclasses.replace(train, annotations=dataclasses.replace(train.annotations, category=categories))
    monkeypatch.setattr("affsup_cli.tasks.scene.task.read_scenes", lambda *_: uneven)
    with torch.no_grad():
        task.model.classifier.weight.zero_()
        task.model.classifier.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0]))
    assert task.evaluate("test") == {"accuracy": pytest.approx(27 / 28), "accuracy_macro": pytest.approx(1 / 2)}


def test_evaluation_looks_at_images_as_they_are(
    shape_scenes: Path, undescribed: Path, part_a: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build(undescribed, part_a)
    seen: list[bytes] = []

    def look(self: SceneClassifier, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append(images.to(torch.uint8).contiguous().numpy().tobytes())
        return torch.zeros(96 + 32)

    monkeypatch.setattr(SceneClassifier, "part_a_features", look)
    task.evaluate("test")
    manifest = read_scene_manifest(shape_scenes / "shape-scenes")
    scenes = read_scenes(shape_scenes / "shape-scenes", manifest, "test")
    resized = (
        Image.fromarray(scenes.pixels(index)).resize((64, 64), Image.Resampling.BILINEAR) for index in range(400)
    )
    assert seen == [np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).tobytes() for image in resized]


def test_part_a_may_have_recorded_more_than_its_recipe_asks_for(shape_scenes: Path, part_a: Path) -> None:
    trained = open_trained(part_a)
    affinity = trained.recipe.affinity.model_copy(update={"measure": False})  # type: ignore[attr-defined]
    recorded = dataclasses.replace(trained, recipe=trained.recipe.model_copy(update={"affinity": affinity}))
    task = build_task(small_scene(), shape_scenes, network=recorded)
    assert task.initialised_from["network"]["digest"] == trained.digest


def test_an_untrained_part_a_is_drawn_from_the_seed(shape_scenes: Path) -> None:
    fields = {"model__features": "scene", "model__pretrained": False}
    digests = []
    for process, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(process)
        task = build_task(small_scene(**fields, seed=seed), shape_scenes)
        digests.append(sum(float(value.double().sum()) for value in task.model.state_dict().values()))
    assert digests[0] == digests[1] != digests[2]


def test_a_run_that_was_stopped_and_resumed_ends_as_one_left_alone(
    shape_scenes: Path, undescribed: Path, part_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_scene()
    alone = train_run(recipe, shape_scenes, RunFolder(tmp_path / "alone"), pretrained=part_a)
    stopped = RunFolder(tmp_path / "stopped")
    save, saves = Trainer._save, []

    def stop(self: Trainer) -> None:
        save(self)
        saves.append(1)
        raise Stopped("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", stop)
        with pytest.raises(Stopped):
            train_run(recipe, undescribed, stopped, pretrained=part_a)
    train_run(recipe, undescribed, stopped, resume=True)
    results = [{**run.result(), "seconds": 0} for run in (alone, stopped)]
    assert results[0] == results[1]
    weights = [open_trained(run.path).digest for run in (alone, stopped)]
    assert weights[0] == weights[1]
    assert set(results[0]["metrics"]) == {
        "train_loss",
        "train_class_loss",
        "train_accuracy",
        "test_accuracy",
        "test_accuracy_macro",
    }


def test_a_run_is_not_resumed_from_another_part_a(
    shape_scenes: Path, part_a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, save = small_scene(), RunFolder(tmp_path / "run"), Trainer._save

    def stop(self: Trainer) -> None:
        save(self)
        raise Stopped("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", stop)
        with pytest.raises(Stopped):
            train_run(recipe, shape_scenes, run, pretrained=part_a)
    other = RunFolder(tmp_path / "other")
    shutil.copytree(part_a, other.path)
    state = open_trained(part_a).state(torch.device("cpu"))
    save_checkpoint(other.best, {"model": {name: value + 1 for name, value in state.items()}})
    with pytest.raises(UsageError, match="was started from pretrained network with SHA-256"):
        train_run(recipe, shape_scenes, run, resume=True, pretrained=other.path)
    assert not run.finished
    export_trained(open_trained(part_a), tmp_path / "same.safetensors")
    assert train_run(recipe, shape_scenes, run, resume=True, pretrained=tmp_path / "same.safetensors").finished


def test_the_run_says_what_it_was_begun_from(shape_scenes: Path, part_a: Path, tmp_path: Path) -> None:
    exported = tmp_path / "part-a.safetensors"
    export_trained(open_trained(part_a), exported)
    recipe = small_scene(train__epochs=1)
    runs = [
        train_run(recipe, shape_scenes, RunFolder(tmp_path / name), pretrained=source)
        for name, source in (("folder", part_a), ("file", exported))
    ]
    said = [run.environment()["network"] for run in runs]
    assert said[0] == said[1]
    assert said[0]["digest"] == open_trained(part_a).digest
    assert said[0]["data"]["name"] == "shapes"
    assert runs[0].result()["metrics"] == runs[1].result()["metrics"]


def test_evaluation_needs_nothing_but_the_run(shape_scenes: Path, part_a: Path, tmp_path: Path) -> None:
    run = train_run(small_scene(), shape_scenes, RunFolder(tmp_path / "run"), pretrained=part_a)
    assert evaluate_run(run, shape_scenes, "test", "cpu") == {
        key: value for key, value in run.result()["metrics"].items() if key.startswith("test_")
    }


def test_a_network_that_was_not_trained_needs_no_run(shape_scenes: Path, tmp_path: Path) -> None:
    recipe = small_scene(model__features="scene", model__pretrained=False, train__epochs=1)
    run = train_run(recipe, shape_scenes, RunFolder(tmp_path / "run"))
    assert run.environment()["network"] is None


def test_a_missing_part_a_is_asked_for(shape_scenes: Path) -> None:
    with pytest.raises(UsageError, match="builds on a run of relnet-shapes-convnet-focal: name it with --pretrained"):
        build_task(small_scene(), shape_scenes)


def test_a_part_a_of_another_recipe_is_refused(shape_scenes: Path, part_a: Path) -> None:
    with pytest.raises(UsageError, match=r"affinity.gamma is 2.0 there, 5.0 here"):
        build(shape_scenes, part_a, network__affinity__gamma=5)


def test_a_part_a_with_other_layers_than_its_recipe_says_is_refused(shape_scenes: Path, part_a: Path) -> None:
    trained = open_trained(part_a)

    class Broken(TrainedModel):
        def state(self, device: torch.device) -> dict[str, torch.Tensor]:
            return dict(list(trained.state(device).items())[1:])

    broken = Broken(trained.path, trained.name, trained.recipe, trained.environment, trained.metrics)
    with pytest.raises(AffsupError, match="is not of this run"):
        build_task(small_scene(), shape_scenes, network=broken)


def test_a_data_set_without_categories_is_refused(shape_scenes: Path, part_a: Path) -> None:
    with pytest.raises(UsageError, match="data set 'shapes' holds scenes without categories"):
        build(shape_scenes, part_a, data__name="shapes")


def test_the_recipe_says_that_untrained_proposals_are_worth_nothing() -> None:
    with pytest.raises(UsageError, match=r"model.features = 'attention' with model.pretrained = false"):
        load_recipe("scene", {"model.pretrained": False})


def test_a_step_runs_on_the_device(shape_scenes: Path, part_a: Path, device: torch.device) -> None:
    task = build(shape_scenes, part_a, run__device=str(device))
    task.begin_epoch(0)
    losses = task.losses(0)
    losses.total().backward()
    assert losses.total().device.type == device.type
    assert 0 <= task.evaluate("test")["accuracy"] <= 1

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

from affsup_cli.affinity import (
    GroundTruth,
    MatchKind,
    TargetKind,
    affinity_loss,
    category_pair_target,
    different_category_target,
    different_instance_target,
    match_proposals,
    proposal_target,
    relationship_target,
    target_mass,
)
from affsup_cli.metrics import RelationshipRecall, relationship
from affsup_cli.metrics.average import Averages
from affsup_cli.metrics.relationship import top_pairs
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.stop import Stopped
from affsup_cli.tasks import build_task
from affsup_cli.tasks.background import map_in_background
from affsup_cli.tasks.detection import task as detection_task
from affsup_cli.tasks.detection.network import ranking_graph
from affsup_cli.tasks.detection.task import DetectionTask, _mean_mass
from affsup_cli.tasks.launch import evaluate_run, train_run
from affsup_cli.training.step import clipped_step, optimizer
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError, UsageError
from data_prep.store import read_scene_manifest, read_scenes
from tests.small_scenes import small


def build(data: Path, name: str = "relnet", **fields: Any) -> DetectionTask:
    task = build_task(small(name, **fields), data)
    assert isinstance(task, DetectionTask)
    task.begin_epoch(0)
    return task


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches and regions that `losses` works on, as it goes."""
    taken: list[Any] = []
    whole = DetectionTask._regions

    def watched(self: DetectionTask, batch: Any, gt_boxes: Tensor | None = None) -> Any:
        found = whole(self, batch, gt_boxes)
        taken.append((batch, found[0]))
        return found

    monkeypatch.setattr(DetectionTask, "_regions", watched)
    return taken


TARGETS = {
    "different-category": lambda match, batch: different_category_target(match, batch.labels[0]),
    "different-instance": lambda match, batch: different_instance_target(match),
    "relationship": lambda match, batch: relationship_target(match, batch.relations[0]),
    "category-pair": lambda match, batch: category_pair_target(match, batch.labels[0], first=5, second=None),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("heads", "geometry", "module"), [("mean", False, 2), ("each", True, 1)])
def test_the_supervised_graph_is_what_the_recipe_says(
    shapes: Path, seen: list[Any], target: str, heads: str, geometry: bool, module: int
) -> None:
    fields = {"target": target, "heads": heads, "geometry": geometry, "module": module, "loss": "focal", "gamma": 3}
    if target == "category-pair":
        fields["first"] = "ring"
    task = build(shapes, train__batch_size=1, **{f"affinity__{key}": value for key, value in fields.items()})
    losses = task.losses(0)
    ((batch, regions),) = seen
    count = int(regions.present[0].sum())
    graph = regions.graphs[module - 1]
    logits = (graph.dots + graph.geometry if geometry else graph.dots)[0, :, :count, :count].detach()
    wanted = TARGETS[target](match_proposals(regions.boxes[0, :count], batch.boxes[0]), batch)
    assert wanted.any()
    mean = logits.mean(dim=0)
    of_heads = mean[None] if heads == "mean" else logits
    assert losses.affinity is not None
    expected = affinity_loss(of_heads, wanted.expand_as(of_heads), "focal", 3.0)
    assert losses.affinity.item() == pytest.approx(expected.item(), rel=1e-5)
    mass, images = losses.masked_means["mass"]
    assert images == 1
    assert mass.item() == pytest.approx(target_mass(mean, wanted).item(), rel=1e-5)
    total = sum(term.item() for term in losses.main.values()) + 0.3 * losses.affinity.item()
    assert task._recipe.flat()["affinity.lambda"] == 0.3
    assert losses.total().item() == pytest.approx(total, rel=1e-5)


def test_every_form_and_softmax_of_the_loss_reaches_training(shapes: Path) -> None:
    found = set()
    for form in ("log", "l2", "smooth_l1", "bce"):
        for softmax in ("matrix", "row"):
            losses = build(shapes, affinity__loss=form, affinity__softmax=softmax).losses(0)
            assert losses.affinity is not None
            found.add(round(losses.affinity.item(), 4))
    assert len(found) == 7  # binary cross-entropy has no softmax


def test_the_base_network_measures_the_mass_and_has_no_loss_of_it(shapes: Path) -> None:
    losses = build(shapes, affinity__loss="none").losses(0)
    assert losses.affinity is None
    assert losses.masked_means["mass"][0] > 0
    assert not losses.masked_means["mass"][0].requires_grad
    assert not build(shapes, affinity__loss="none", affinity__measure=False).losses(0).masked_means


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for a GPU: reading a value, a shape that values decide, a constant copied."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []
        self.torchvisions: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in self.READING or by_mask:
            frame: Any = sys._getframe(1)
            while not any(part in ("affsup_cli", "torchvision") for part in Path(frame.f_code.co_filename).parts):
                frame = frame.f_back
            path = Path(frame.f_code.co_filename)
            noted = self.ours if "affsup_cli" in path.parts else self.torchvisions
            noted.append(f"{name} at {path.name}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["frcnn", "relnet", "relpn"])
def test_nothing_of_ours_in_a_step_or_an_evaluation_waits_for_the_device(shapes: Path, name: str) -> None:
    task = build(shapes, name, model__pooling="pool")
    with Waits() as in_a_step:
        task.losses(0).total().backward()
    scenes = read_scenes(shapes / "shapes", read_scene_manifest(shapes / "shapes"), "test")
    with Waits() as in_a_batch:
        next(task._outputs(scenes))
    assert in_a_step.ours == in_a_batch.ours == []
    assert in_a_step.torchvisions  # what it notes, if it is there


def test_an_evaluation_counted_in_a_thread_is_the_same(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build(shapes)
    written = []
    measured = []
    for folder in (tmp_path / "in turn", tmp_path / "behind"):
        folder.mkdir()
        measured.append(task.evaluate("test"))
        task.export(folder, "test")
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
        monkeypatch.setattr("affsup_cli.tasks.detection.task.map", map_in_background, raising=False)
    assert measured[0] == measured[1]
    assert written[0] == written[1]
    names = ["detections-test.json", "examples.h5", "relationships-test.h5", "scene-graphs-test.json"]
    assert sorted(written[0]) == names


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile's
@pytest.mark.parametrize("name", ["frcnn", "relnet", "relpn"])
def test_a_step_its_averages_and_an_evaluation_run_on_the_device(shapes: Path, device: torch.device, name: str) -> None:
    compiled = device.type == "cuda" and name == "relnet"  # on a CPU: test_detection_compiled
    task = build(shapes, name, run__device=str(device), train__precision="bf16", train__compile=compiled)
    losses = task.losses(0)
    losses.total().backward()
    averages = Averages()
    averages.add({"loss": losses.total()}, losses.size)
    for metric, (value, count) in losses.masked_means.items():
        averages.add({metric: value}, count)
    assert all(map(math.isfinite, averages.read().values()))
    assert 0 <= task.evaluate("train")["map_50"] <= 1


def test_images_without_a_target_are_counted_and_change_neither_loss_nor_mass(shapes: Path) -> None:
    fields = {"affinity__target": "category-pair", "affinity__first": "heart", "affinity__second": "heart"}
    task = build(shapes, train__batch_size=8, **fields)
    losses = task.losses(0)
    empty = losses.metrics["empty_target"].item()
    assert 0 < empty < 1
    assert losses.masked_means["mass"][1].item() == round(8 * (1 - empty))
    assert losses.affinity is not None
    assert losses.affinity.isfinite()


def test_the_average_over_the_batch_counts_images_without_a_target(shapes: Path) -> None:
    fields = {"affinity__target": "category-pair", "affinity__first": "heart", "affinity__second": "heart"}
    with_target, batch = (
        build(shapes, train__batch_size=8, affinity__average=average, **fields).losses(0)
        for average in ("with-target", "batch")
    )
    share = 1 - with_target.metrics["empty_target"]
    assert with_target.affinity is not None
    assert batch.affinity is not None
    torch.testing.assert_close(batch.affinity, with_target.affinity * share)
    assert ("affinity" in with_target.counts, "affinity" in batch.counts) == (True, False)


def test_the_match_of_the_recipe_reaches_the_target(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matches: list[str] = []

    def target(kind: TargetKind, boxes: Tensor, truth: GroundTruth, match: MatchKind) -> Tensor:
        matches.append(match)
        return proposal_target(kind, boxes, truth, match)

    monkeypatch.setattr("affsup_cli.tasks.detection.task.proposal_target", target)
    build(shapes, affinity__match="any").losses(0)
    assert matches == ["any"]


def test_l_g_reaches_the_backbone_but_not_the_proposals(shapes: Path) -> None:
    task = build(shapes)
    loss = task.losses(0).affinity
    assert loss is not None
    loss.backward()
    detector = task.model.detector
    assert all(parameter.grad is None for parameter in detector.proposals.parameters())
    gradient = next(detector.backbone.parameters()).grad
    assert gradient is not None
    assert gradient.any()


def test_a_step_on_l_g_raises_the_mass(shapes: Path) -> None:
    task = build(shapes)
    torch.manual_seed(0)
    before = task.losses(0)
    assert before.affinity is not None
    before.affinity.backward()
    with torch.no_grad():
        for parameter in task.model.detector.head.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    after = task.losses(0)
    assert after.affinity is not None
    assert after.affinity < before.affinity
    assert after.masked_means["mass"][0] > before.masked_means["mass"][0]


def test_a_plain_detector_has_no_graph(shapes: Path, tmp_path: Path) -> None:
    task = build(shapes, "frcnn")
    losses = task.losses(0)
    assert losses.affinity is None
    assert not losses.masked_means
    measured = task.evaluate("train")
    assert set(measured) == {"map_all", "map_50", "map_50_voc07", "map_50_area"}
    task.export(tmp_path, "train")
    assert [path.name for path in tmp_path.iterdir()] == ["detections-train.json"]


def test_relpn_learns_pairs_and_ranks_by_their_scores(shapes: Path, tmp_path: Path) -> None:
    task = build(shapes, "relpn")
    losses = task.losses(0)
    assert losses.main["pair_loss"] > 0
    assert "recall@10" in task.evaluate("train")
    task.export(tmp_path, "train")
    assert RunFolder(tmp_path).relationships("train").is_file()


def test_evaluation_agrees_with_its_files(shapes: Path, tmp_path: Path) -> None:
    task = build(shapes)
    measured = task.evaluate("test")
    task.export(tmp_path, "test")
    run = RunFolder(tmp_path)
    scenes = read_scenes(shapes / "shapes", read_scene_manifest(shapes / "shapes"), "test")
    detections = json.loads(run.detections("test").read_text())
    ids = [int(number) for number in scenes.ids]
    assert {entry["image_id"] for entry in detections} <= set(ids)
    assert {entry["category_id"] for entry in detections} <= set(range(1, 9))
    widest = max(entry["bbox"][0] + entry["bbox"][2] for entry in detections)
    assert 64 < widest <= 128.01  # in pixels of the original images, which are twice as large as those seen
    with h5py.File(run.relationships("test")) as h5:
        image_id, subject, other, weight = (h5[name][:] for name in ("image_id", "subject", "object", "weight"))
    assert list(dict.fromkeys(image_id.tolist())) == ids
    # Recall at 10 from the file alone: its first ten rows of each image, each overlap by definition.
    found = total = 0
    for index, number in enumerate(ids):
        objects, rows = scenes.objects(index), np.flatnonzero(image_id == number)[:10]
        assert (np.diff(weight[image_id == number]) <= 0).all()
        boxes = torch.from_numpy(objects.boxes)
        near = [box_iou(torch.from_numpy(ends[rows]), boxes).numpy() >= 0.5 for ends in (subject, other)]
        pairs = {tuple(pair) for pair in objects.relations.tolist()}
        found += sum(bool((near[0][:, s] & near[1][:, o]).any()) for s, o in pairs)
        total += len(pairs)
    assert measured["recall@10"] == pytest.approx(found / total)
    assert 0 < measured["recall@10"] < measured["recall@1000"]
    assert run.examples.is_file()


@pytest.mark.parametrize("most", [10, 1000])
def test_the_pairs_of_an_image_are_ranked_once_for_recall_and_for_the_file(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    ranked = []
    for module in (detection_task, relationship):
        monkeypatch.setattr(module, "top_pairs", lambda graph, k: ranked.append(len(graph)) or top_pairs(graph, k))
    task = build(shapes, test__recall_at=[most])
    measured = task.evaluate("test")
    task.export(tmp_path, "test")
    with h5py.File(RunFolder(tmp_path).relationships("test")) as h5:
        rows = np.unique(h5["image_id"][:], return_counts=True)[1]
        assert {len(column) for column in h5.values()} == {rows.sum()}
    assert rows.tolist() == [min(100, count * (count - 1)) for count in ranked]
    assert rows.max() == 100
    assert f"recall@{most}" in measured


def test_annotated_relations_are_needed_where_they_are_learned(shapes: Path, voc_mini: Path) -> None:
    for name, fields in (
        ("relpn", {}),
        ("relnet with affinity.target = relationship", {"affinity__target": "relationship"}),
    ):
        with pytest.raises(UsageError, match=rf"^{name} learns from annotated relations, and voc07 has none"):
            build(voc_mini, name.split()[0], data__name="voc07", model__arch="convnet", model__weights="none", **fields)


def test_a_class_that_is_not_there_is_refused_with_a_hint(shapes: Path) -> None:
    with pytest.raises(UsageError, match=r"affinity.first = 'rings' is no class of shapes \(did you mean 'ring'"):
        build(shapes, affinity__target="category-pair", affinity__first="rings")


def test_a_set_of_labelled_images_is_refused(digits: Path) -> None:
    with pytest.raises(UsageError, match="holds labelled images"):
        build(digits, data__name="digits", model__arch="convnet", model__weights="none")


def test_a_split_that_scenes_do_not_have_is_refused(shapes: Path) -> None:
    with pytest.raises(UsageError, match="no split 'val'"):
        build(shapes).evaluate("val")


def test_a_run_stopped_in_mid_epoch_and_resumed_ends_as_one_left_alone(shapes: Path, tmp_path: Path) -> None:
    recipe = small(train__epochs=2, run__checkpoint_seconds=1e-9)
    whole = train_run(recipe, shapes, RunFolder(tmp_path / "whole"))

    def interrupted(*, resume: bool) -> None:
        task = build_task(recipe, shapes)
        run = RunFolder(tmp_path / "parts")
        steps = 0
        losses = task.losses

        def counted(step: int) -> Any:
            nonlocal steps
            steps += 1
            if steps > 4:
                raise Stopped("enough")
            return losses(step)

        task.losses = counted  # type: ignore[method-assign]
        with run.lock():
            if not resume:
                run.write_environment({"data": task.data, **task.initialised_from})
                run.write_recipe(recipe)
            Trainer(task, recipe, run).run()

    for resume in (False, True):
        with pytest.raises(Stopped):
            interrupted(resume=resume)
    parts = train_run(recipe, shapes, RunFolder(tmp_path / "parts"), resume=True)
    assert parts.result()["metrics"] == whole.result()["metrics"]
    models = [torch.load(run.best, weights_only=True)["model"] for run in (whole, parts)]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert whole.result()["best_epoch"] == 2
    assert whole.result()["metrics"]["train_mass"] == whole.metrics()[-1]["train_mass"]


def test_a_file_of_weights_is_recorded_and_needed_for_a_fresh_start_alone(shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    recipe = small(model__arch="resnet18", model__weights=str(weights), model__proposals=8)
    task = build_task(recipe, shapes)
    assert task.initialised_from["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    run = RunFolder(tmp_path / "run")
    with run.lock():
        run.write_environment({"data": task.data, **task.initialised_from})
        run.write_recipe(recipe)
        save_checkpoint(run.best, {"model": task.model.state_dict()})
    before = evaluate_run(run, shapes, "train", "cpu")
    weights.unlink()
    assert evaluate_run(run, shapes, "train", "cpu") == before
    with pytest.raises(AffsupError, match=r"resnet18\.pth"):
        build_task(recipe, shapes)


def test_a_run_stopped_before_its_first_checkpoint_goes_on_from_the_same_weights_alone(
    shapes: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    recipe = small(model__arch="resnet18", model__weights=str(weights))
    run = RunFolder(tmp_path / "run")
    task = build_task(recipe, shapes)
    with run.lock():
        run.write_environment({"data": task.data, **task.initialised_from})
        run.write_recipe(recipe)
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    with pytest.raises(UsageError, match="was started from pretrained weights with SHA-256"):
        train_run(recipe, shapes, run, resume=True)


@pytest.mark.real_data
def test_four_real_images_are_learned_by_heart(voc_mini: Path) -> None:
    fields = {
        "data.name": "voc07", "data.short_side": 96, "data.long_side": 128, "data.mirror": False,
        "model.arch": "convnet", "model.weights": "none", "model.anchor_scales": [3, 6, 10], "model.proposals": 100,
        "model.candidates": 400, "model.pooling": "align", "model.channels": 32, "model.width": 64,
        "model.initial": "kaiming", "model.mined": 32, "relation.heads": 4, "relation.key_dim": 16,
        "affinity.lambda": 1.0, "run.device": "cpu", "train.batch_size": 4, "train.learning_rate": 0.02,
        "train.clip_norm": 1.0,
    }  # fmt: skip
    task = build_task(load_recipe("relnet", fields), voc_mini)
    assert isinstance(task, DetectionTask)
    four = [i for i in range(len(task._train)) if len(task._train.objects(i).relations) == 2][:4]
    assert len(four) == 4
    epochs = task._epochs
    (batch,) = epochs._data.batches([[(i, False) for i in four]])
    epochs.batch = lambda step: batch  # type: ignore[method-assign]
    epochs.size = lambda step: len(four)  # type: ignore[method-assign]
    steps = optimizer(task, task._recipe.train)

    def measured() -> tuple[int, float, Mapping[int, float]]:
        """How many images have a target, M over them, and the recall of the eight pairs among 9,900 of each image."""
        task.model.eval()
        recall = RelationshipRecall((100, 300))
        with torch.no_grad():
            regions, _ = task._regions(batch)
            graph = ranking_graph(task._recipe, task.model, regions)
            assert graph is not None
            assert task._affinity is not None
            target = task._target(regions, batch, task._affinity)
            mass, images = _mean_mass(target_mass(graph, target), target)
            for place in range(4):
                count = int(regions.present[place].sum())
                pairs = batch.relations[place]
                recall.update(
                    regions.boxes[place, :count],
                    graph[place, :count, :count],
                    batch.boxes[place],
                    pairs[pairs[:, 0] >= 0],
                )
        task.model.train()
        return int(images), mass.item(), recall.compute()["micro"]

    task.model.train()
    # How many steps that takes depends on the last bits of the kernels: it trains until it knows the images, within a
    # bound. The lower rate at the end keeps it from moving around what it has learned.
    for step in range(500):
        if step == 150:
            for group in steps.param_groups:
                group["lr"] /= 5
        losses = task.losses(0)
        steps.zero_grad()
        losses.total().backward()
        clipped_step(steps, task._recipe.train.clip_norm)
        if step % 50 == 49:
            images, mass, found = measured()
            if images == 4 and mass > 0.9 and found[100] >= 7 / 8 and found[300] == 1:
                return
    pytest.fail(f"after 500 steps {images} images have a target, M is {mass:.3f} and recall {found}")


def test_both_evaluators_give_the_same_precision(shapes: Path) -> None:
    precisions = []
    for evaluator in ("arrays", "pycocotools"):
        metrics = build(shapes, "frcnn", test__evaluator=evaluator).evaluate("test")
        precisions.append({name: metrics[name] for name in ("map_all", "map_50")})
    assert precisions[0] == precisions[1]

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from affsup_cli.commands.list import list_
from affsup_cli.distributed import collectives
from affsup_cli.models.scene import SceneClassifier
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks import build_task
from affsup_cli.tasks.launch import evaluate_run, train_run
from affsup_cli.tasks.scene.feature_cache import CachedSplit, CacheFile, cache_key
from affsup_cli.tasks.scene.task import SceneTask
from data_prep.store import read_scene_manifest, read_scenes
from tests.commands.calling import invoke
from tests.small_scenes import small_scene

IMAGES = CachedSplit("d" * 64, "train", 28, True)
BASIS = {"weights": "w", "size": 64}
Spoil = Callable[[Path], object]


def build(data: Path, part_a: Path, **fields: Any) -> SceneTask:
    task = build_task(small_scene(**fields), data, network=open_trained(part_a))
    assert isinstance(task, SceneTask)
    return task


def pass_epoch(task: SceneTask) -> torch.Tensor:
    """Take an epoch's steps; return what was said of every image and its mirror image."""
    task.begin_epoch(0)
    for step in range(task.steps):
        task.losses(step)
    return torch.stack([task._train_features._features[entry] for entry in task._entries])


def kept_files(data: Path) -> list[Path]:
    return sorted((data / ".features").iterdir())


def name_of(images: CachedSplit, task: SceneTask, recipe: Any = None) -> str:
    return CacheFile(Path(), cache_key(images, task.model, recipe or task._recipe)).path.name


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forbids part A to say anything from now on."""

    def forbid() -> None:
        def asked(*_: object) -> torch.Tensor:
            raise AssertionError("part A was asked")

        monkeypatch.setattr(SceneClassifier, "part_a_features", asked)

    return forbid


def test_a_run_that_reads_what_is_kept_ends_as_one_that_finds_it(
    undescribed: Path, part_a: Path, tmp_path: Path, silent: Callable[[], None]
) -> None:
    found = train_run(small_scene(), undescribed, RunFolder(tmp_path / "found"), pretrained=part_a)
    shutil.rmtree(undescribed / ".features")
    train_run(small_scene(seed=1), undescribed, RunFolder(tmp_path / "other"), pretrained=part_a)
    silent()
    read = train_run(small_scene(), undescribed, RunFolder(tmp_path / "read"), pretrained=part_a)
    results = [{**run.result(), "seconds": 0} for run in (found, read)]
    assert results[0] == results[1]
    assert open_trained(found.path).digest == open_trained(read.path).digest
    assert evaluate_run(read, undescribed, "test", "cpu")["test_accuracy"] == results[0]["metrics"]["test_accuracy"]


def test_a_kept_file_says_what_part_a_says_and_on_what_that_rests(undescribed: Path, part_a: Path) -> None:
    task = build(undescribed, part_a)
    pass_epoch(task)
    (path,) = kept_files(undescribed)
    manifest = read_scene_manifest(undescribed / "shape-scenes")
    scenes = read_scenes(undescribed / "shape-scenes", manifest, "train")
    pictures = []
    for index in range(28):
        scaled = np.array(Image.fromarray(scenes.pixels(index)).resize((64, 64), Image.Resampling.BILINEAR))
        pictures.append(torch.from_numpy(scaled).permute(2, 0, 1).contiguous()[None])
    pictures += [picture.flip(3) for picture in pictures]
    pictures = [picture.to(torch.float32, memory_format=torch.channels_last) for picture in pictures]
    described = load_file(path)["features"]
    assert torch.equal(described, torch.stack([task.model.part_a_features(each, (64, 64)) for each in pictures]))
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["affsup"])
    assert said["sha256"] == hashlib.sha256(described.numpy().tobytes()).hexdigest()
    assert path.stem == hashlib.sha256(json.dumps(said["cache_key"], sort_keys=True).encode()).hexdigest()
    assert said["cache_key"].items() >= {"data": manifest.digest, "split": "train", "mirror": True}.items()
    assert said["cache_key"].items() >= {"short_side": 64, "features": "attention", "precision": "float32"}.items()
    assert said["cache_key"]["network"]["model.proposals"] == 60
    assert said["cache_key"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_other_images_are_kept_apart(shape_scenes: Path, part_a: Path) -> None:
    task = build(shape_scenes, part_a)
    others = [
        CachedSplit("e" * 64, "train", 28, True),
        CachedSplit("d" * 64, "test", 28, True),
        CachedSplit("d" * 64, "train", 28, False),
    ]
    assert len({name_of(images, task) for images in (IMAGES, *others)}) == 4


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"seed": 1, "train__epochs": 7, "train__learning_rate": 0.5, "train__batch_size": 8}, True),
        ({"model__channels": 4, "run__checkpoint_seconds": 1}, True),
        ({"data__short_side": 63}, False),
        ({"data__long_side": 80}, False),
        ({"train__precision": "bf16"}, False),
        ({"run__channels_last": False}, False),
        ({"model__features": "rois"}, False),
        ({"network__model__proposals": 59}, False),
    ],
)
def test_what_changes_the_numbers_changes_the_file(
    shape_scenes: Path, part_a: Path, fields: dict[str, Any], same: bool
) -> None:
    task = build(shape_scenes, part_a)
    assert (name_of(IMAGES, task) == name_of(IMAGES, task, small_scene(**fields))) == same


def test_every_weight_of_part_a_counts_and_none_of_the_branch(shape_scenes: Path, part_a: Path) -> None:
    task = build(shape_scenes, part_a)
    names = [name_of(IMAGES, task)]
    with torch.no_grad():
        task.model.classifier.weight += 1
        assert name_of(IMAGES, task) == names[0]
        for value in task.model.part_a.state_dict().values():
            value[(-1,) * value.dim()] += 1
            names.append(name_of(IMAGES, task))
    assert len(set(names)) == len(names) > 10


def test_an_untrained_part_a_is_another_for_each_seed(shape_scenes: Path) -> None:
    names = []
    for seed in (0, 1, 0):
        task = build_task(small_scene(model__features="scene", model__pretrained=False, seed=seed), shape_scenes)
        assert isinstance(task, SceneTask)
        names.append(name_of(IMAGES, task))
    assert names[0] == names[2] != names[1]


def test_threads_count_on_a_cpu(shape_scenes: Path, part_a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build(shape_scenes, part_a)
    names = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        names.append(name_of(IMAGES, task))
    assert names[0] != names[1]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def claim(path: Path, record: object) -> None:
    save_file(load_file(path), path, metadata={"affsup": json.dumps(record)})


def say_of_another(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["affsup"])
    record["cache_key"]["weights"] = "0" * 64
    claim(path, record)


@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_bit,
        say_of_another,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{"),
        lambda path: save_file(load_file(path), path),
        lambda path: save_file({"other": torch.zeros(2)}, path, metadata={"affsup": "{}"}),
        lambda path: claim(path, None),
        lambda path: save_file(load_file(path), path, metadata={"affsup": "no JSON"}),
    ],
    ids=["bit", "cache_key", "torn", "empty", "header", "no-record", "other-tensor", "other-record", "no-json"],
)
def test_a_damaged_or_foreign_file_is_not_used(tmp_path: Path, spoil: Spoil) -> None:
    kept = CacheFile(tmp_path / "kept", BASIS)
    assert kept.read() is None
    described = torch.arange(60.0).reshape(6, 10)
    kept.write(described)
    read = kept.read()
    assert read is not None
    assert torch.equal(read, described)
    spoil(kept.path)
    with pytest.warns(
        UserWarning, match=rf"{kept.path.name} is damaged or was written by another program: .*computed again"
    ):
        assert kept.read() is None


def test_a_damaged_file_is_replaced(undescribed: Path, part_a: Path) -> None:
    found = pass_epoch(build(undescribed, part_a))
    (path,) = kept_files(undescribed)
    good = path.read_bytes()
    flip_a_bit(path)
    with pytest.warns(UserWarning, match="computed again"):
        again = pass_epoch(build(undescribed, part_a))
    assert torch.equal(found, again)
    assert kept_files(undescribed) == [path]
    assert path.read_bytes() == good


def test_a_full_disk_ends_no_run(undescribed: Path, part_a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.warns(UserWarning, match="not cached for other runs: no space to write .*Make room"):
            found = pass_epoch(build(undescribed, part_a))
    assert kept_files(undescribed) == []
    assert torch.equal(found, pass_epoch(build(undescribed, part_a)))
    assert len(kept_files(undescribed)) == 1


def test_a_place_that_cannot_be_written_to_ends_no_run(undescribed: Path, part_a: Path) -> None:
    (undescribed / ".features").write_text("mine")
    with pytest.warns(UserWarning, match="the features are not cached for other runs: .*File exists"):
        pass_epoch(build(undescribed, part_a))
    assert (undescribed / ".features").read_text() == "mine"


def test_a_part_of_the_images_is_not_kept(undescribed: Path, part_a: Path) -> None:
    task = build(undescribed, part_a)
    task.begin_epoch(0)
    for step in range(task.steps - 1):
        task.losses(step)
    assert not (undescribed / ".features").exists()
    task.losses(task.steps - 1)
    assert len(kept_files(undescribed)) == 1


def test_several_processes_read_and_do_not_write(
    undescribed: Path, part_a: Path, monkeypatch: pytest.MonkeyPatch, silent: Callable[[], None]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(collectives, "world_size", lambda: 2)
        task = build(undescribed, part_a)
        task._train_features.features(task._entries, task._entries)
        assert not (undescribed / ".features").exists()
    found = pass_epoch(build(undescribed, part_a))
    silent()
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    task = build(undescribed, part_a)
    assert torch.equal(task._train_features.features(task._entries, task._entries), found)


def test_writers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from affsup_cli.tasks.scene.feature_cache import CacheFile\n"
        f"kept = CacheFile(Path(sys.argv[1]), {BASIS})\n"
        "for _ in range(15): kept.write(torch.full((100, 200), 1.0))"
    )
    kept, seen = CacheFile(tmp_path / "kept", BASIS), set()
    other = subprocess.Popen([sys.executable, "-W", "error", "-c", script, str(tmp_path / "kept")])
    while other.poll() is None:
        kept.write(torch.full((100, 200), 2.0))
        described = kept.read()
        assert described is not None
        seen |= {tuple(described.unique().tolist())}
    assert other.returncode == 0
    assert seen <= {(1.0,), (2.0,)}
    assert list((tmp_path / "kept").iterdir()) == [kept.path]


def test_what_is_kept_is_no_data_set(undescribed: Path, part_a: Path) -> None:
    listed = [invoke(list_, "datasets", "--data", str(undescribed)).output]
    pass_epoch(build(undescribed, part_a))
    listed.append(invoke(list_, "datasets", "--data", str(undescribed)).output)
    assert len(kept_files(undescribed)) == 1
    assert "28 train" in listed[0] == listed[1]


def test_what_is_read_is_on_the_device(undescribed: Path, part_a: Path, device: torch.device) -> None:
    found = pass_epoch(build(undescribed, part_a, run__device=str(device)))
    again = build(undescribed, part_a, run__device=str(device))
    read = again._train_features.features(again._entries, again._entries)
    assert read.device.type == device.type
    assert torch.equal(read, found)

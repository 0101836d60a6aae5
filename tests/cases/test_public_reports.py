"""Cases of public bug reports; README.md beside this file lists their sources."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import DataParallel
from torchvision.models import resnet18

import data_prep
from affsup_cli.metrics.detection import DetectionPrecision
from affsup_cli.models.detection.backbones import build_backbone
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks.launch import train_run
from data_prep.build import PrepareResult
from data_prep.decode.pictures import open_picture, square
from data_prep.errors import AffsupError, UsageError
from data_prep.layouts import own_data_set
from data_prep.store import Scenes, read_image_manifest, read_scenes, read_split
from tests.data_prep.scene_sources import ORIENTATION, picture


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def prepare(layout: str, source: Path) -> PrepareResult:
    return data_prep.prepare(own_data_set(layout, "mine"), sources=[source], data_dir=source.parent / "data")


def scenes(result: PrepareResult, name: str = "train") -> Scenes:
    return read_scenes(result.folder, result.manifest, name)


# COCO's JSON


def coco_of(split: str, content: dict[str, Any], **pictures: bytes) -> dict[str, bytes]:
    files = {f"{split}/{name}.jpg": encoded for name, encoded in pictures.items()}
    return files | {f"{split}/_annotations.coco.json": json.dumps(content).encode()}


def content(*, first_id: int = 1, category: int = 1, **changes: Any) -> dict[str, Any]:
    """One picture of 64 x 48 with one object."""
    box = {"id": first_id, "image_id": 1, "category_id": category, "bbox": [2, 3, 20, 10], "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [box],
        "categories": [{"id": category, "name": "cat"}],
    } | changes


def prepare_coco(folder: Path, train: dict[str, Any], test: dict[str, Any] | None = None) -> PrepareResult:
    files = coco_of("train", train, a=picture()) | coco_of("test", test or train, a=picture())
    return prepare("coco-json", write(folder / "source", files))


@pytest.mark.parametrize("number", [0, 1])
def test_an_object_counts_whatever_its_id(tmp_path: Path, number: int) -> None:
    split = scenes(prepare_coco(tmp_path, content(first_id=number)))
    precision = DetectionPrecision(["cat"])
    truth = split.objects(0)
    no = np.zeros(1, np.bool_)
    precision.update(1, truth.boxes, np.ones(1, np.float32), truth.labels, truth.boxes, truth.labels, no, no)
    assert precision.compute()["map_50"] == pytest.approx(1)


@pytest.mark.parametrize("number", [0, 7])
def test_a_class_has_any_id(tmp_path: Path, number: int) -> None:
    result = prepare_coco(tmp_path, content(category=number))
    assert result.manifest.classes == ["cat"]
    assert result.manifest.category_ids == [number]
    assert scenes(result).objects(0).labels.tolist() == [0]


def test_a_category_that_only_groups_others_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "person", "supercategory": "person"},
    ]
    result = prepare_coco(tmp_path, content(categories=categories))
    assert result.manifest.classes == ["cat", "person"]


def test_a_category_with_objects_that_groups_others_is_a_class(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "animals"}, {"id": 1, "name": "cat", "supercategory": "animals"}]
    box = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [2, 3, 20, 10]}
    result = prepare_coco(tmp_path, content(categories=categories), content(categories=categories, annotations=[box]))
    assert result.manifest.classes == ["animals", "cat"]


@pytest.mark.parametrize(("field", "value"), [("iscrowd", 0.0), ("iscrowd", False), ("category_id", 1.0)])
def test_whole_numbers_are_read_in_any_notation(tmp_path: Path, field: str, value: object) -> None:
    changed = content()
    changed["annotations"][0][field] = value
    objects = scenes(prepare_coco(tmp_path, changed)).objects(0)
    assert objects.labels.tolist() == [0]
    assert objects.crowd.tolist() == [False]


@pytest.mark.parametrize(
    ("field", "value"), [("category_id", "1"), ("image_id", "1"), ("bbox", []), ("category_id", 0.5), ("iscrowd", None)]
)
def test_other_notations_are_named(tmp_path: Path, field: str, value: object) -> None:
    changed = content()
    changed["annotations"][0][field] = value
    with pytest.raises(AffsupError, match=rf"_annotations\.coco\.json: annotations\[0\] '{field}' is "):
        prepare_coco(tmp_path, changed)


def test_images_without_objects_stay_and_empty_boxes_are_left_out(tmp_path: Path) -> None:
    empty = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 0], "area": 0, "iscrowd": False}
    result = prepare_coco(tmp_path, content(annotations=[]), content(annotations=[empty]))
    assert result.manifest.image_counts() == {"train": 1, "test": 1}
    (left_out,) = result.manifest.left_out
    assert (left_out.what, left_out.count) == ("objects", 1)


def test_a_false_detection_on_an_image_without_objects_counts() -> None:
    precision = DetectionPrecision(["cat"])
    box, one, no = np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int64), np.zeros(1, np.bool_)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.bool_))
    precision.update(1, box, np.array([0.9], np.float32), one, *nothing)
    precision.update(2, box, np.array([0.8], np.float32), one, box, one, no, no)
    assert precision.compute()["map_50"] == pytest.approx(0.5)


def test_a_class_without_objects_in_the_test_split_is_left_out_of_the_mean() -> None:
    precision = DetectionPrecision(["cat", "dog"])
    box, one, no = np.array([[0, 0, 9, 9]], np.float32), np.zeros(1, np.int64), np.zeros(1, np.bool_)
    precision.update(1, box, np.ones(1, np.float32), one, box, one, no, no)
    assert precision.compute()["map_50"] == pytest.approx(1)


def test_annotation_ids_may_repeat_where_nothing_refers_to_them(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"] *= 2
    assert len(scenes(prepare_coco(tmp_path, changed)).objects(0).labels) == 2


def test_a_byte_order_mark_before_json_is_read(tmp_path: Path) -> None:
    files = coco_of("train", content(), a=picture()) | coco_of("test", content(), a=picture())
    files["train/_annotations.coco.json"] = b"\xef\xbb\xbf" + files["train/_annotations.coco.json"]
    assert prepare("coco-json", write(tmp_path / "source", files)).manifest.classes == ["cat"]


@pytest.mark.parametrize("named", [r"images\a.jpg", r"..\image\a.jpg", r"C:\data\a.jpg", "/home/me/data/a.jpg"])
def test_paths_of_other_machines_lead_to_the_picture(tmp_path: Path, named: str) -> None:
    changed = content()
    changed["images"][0]["file_name"] = named
    assert scenes(prepare_coco(tmp_path, changed)).names == ["train/a.jpg"]


def test_endings_in_capitals_are_pictures(tmp_path: Path) -> None:
    files = coco_of("train", content(), a=picture()) | coco_of("test", content(), a=picture())
    files = {name.replace(".jpg", ".JPG"): value.replace(b".jpg", b".JPG") for name, value in files.items()}
    assert scenes(prepare("coco-json", write(tmp_path / "source", files))).names == ["train/a.JPG"]


# VOC's XML

BOX = "<xmin>3</xmin><ymin>4</ymin><xmax>22</xmax><ymax>13</ymax>"
SIZE = "<size><width>64</width><height>48</height></size>"


def prepare_voc(folder: Path, xml: str, size: tuple[int, int] = (64, 48)) -> PrepareResult:
    whole = f"<annotation>{xml}</annotation>".encode()
    files = {f"{split}/a.{kind}": value for split in ("train", "test") for kind, value in
             (("xml", whole), ("jpg", picture(size)))}  # fmt: skip
    return prepare("voc-xml", write(folder / "source", files))


def test_decimals_in_voc_boxes_are_read(tmp_path: Path) -> None:
    decimals = "<xmin>2.5</xmin><ymin>4.70000076293945</ymin><xmax>22.25</xmax><ymax>13.0</ymax>"
    result = prepare_voc(tmp_path, f"{SIZE}<object><name>cat</name><bndbox>{decimals}</bndbox></object>")
    np.testing.assert_allclose(scenes(result).objects(0).boxes, [[1.5, 3.7, 22.25, 13]], rtol=1e-6)


def test_the_order_of_the_sides_of_a_box_does_not_matter(tmp_path: Path) -> None:
    turned = "<xmax>22</xmax><ymin>4</ymin><ymax>13</ymax><xmin>3</xmin>"
    result = prepare_voc(tmp_path, f"{SIZE}<object><name>cat</name><bndbox>{turned}</bndbox></object>")
    assert scenes(result).objects(0).boxes.tolist() == [[2, 3, 22, 13]]


def test_an_object_without_a_difficult_field_is_not_difficult(tmp_path: Path) -> None:
    result = prepare_voc(tmp_path, f"{SIZE}<object><name>cat</name><bndbox>{BOX}</bndbox></object>")
    assert scenes(result).objects(0).difficult.tolist() == [False]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height><depth>3</depth></size>"])
def test_a_size_that_is_missing_or_zero_is_that_of_the_picture(tmp_path: Path, size: str) -> None:
    result = prepare_voc(tmp_path, f"{size}<object><name>cat</name><bndbox>{BOX}</bndbox></object>", (50, 40))
    assert scenes(result).sizes.tolist() == [[50, 40]]
    assert scenes(result).objects(0).boxes.tolist() == [[2, 3, 22, 13]]


def test_a_picture_of_another_size_than_stated_is_left_out_and_named(tmp_path: Path) -> None:
    with pytest.raises(AffsupError, match="of another size than annotated"):
        prepare_voc(tmp_path, f"{SIZE}<object><name>cat</name><bndbox>{BOX}</bndbox></object>", (50, 40))


def test_a_file_name_without_its_ending_leads_to_the_picture(tmp_path: Path) -> None:
    result = prepare_voc(tmp_path, f"<filename>a</filename><path>/home/me/a.xml</path>{SIZE}")
    assert scenes(result).names == ["train/a.jpg"]


def test_sides_in_the_wrong_order_leave_the_object_out_and_count_it(tmp_path: Path) -> None:
    turned = "<xmin>22</xmin><ymin>4</ymin><xmax>3</xmax><ymax>13</ymax>"
    objects = "".join(f"<object><name>cat</name><bndbox>{box}</bndbox></object>" for box in (turned, BOX))
    result = prepare_voc(tmp_path, SIZE + objects)
    assert len(scenes(result).objects(0).labels) == 1
    assert [(each.reason, each.count) for each in result.manifest.left_out] == [("box empty or outside the image", 2)]


def test_a_box_beyond_the_image_is_clipped(tmp_path: Path) -> None:
    beyond = "<xmin>-2</xmin><ymin>4</ymin><xmax>70</xmax><ymax>13</ymax>"
    result = prepare_voc(tmp_path, f"{SIZE}<object><name>cat</name><bndbox>{beyond}</bndbox></object>")
    assert scenes(result).objects(0).boxes.tolist() == [[0, 3, 64, 13]]


# Pictures


def test_hidden_and_empty_folders_are_no_classes(tmp_path: Path) -> None:
    names = [f"{label}/{number}.jpg" for label in ("b", "a", ".ipynb_checkpoints", "__MACOSX/a") for number in range(3)]
    source = write(tmp_path / "source", dict.fromkeys(names, picture()) | {".DS_Store": b"", "a/.DS_Store": b""})
    (source / "empty").mkdir()
    assert read_image_manifest(prepare("folder", source).folder).classes == ["a", "b"]


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    files = {f"{label}/{number}.jpg": picture() for label in "ab" for number in range(3)}
    files["b/1.jpg"] = files["b/1.jpg"][:-40]
    with pytest.raises(AffsupError, match=r"b/1\.jpg: cannot be decoded .*truncated.*repair or remove it"):
        prepare("folder", write(tmp_path / "source", files))


def test_a_grey_picture_of_16_bits_keeps_its_levels(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).repeat(4).reshape(32, 32) * 257
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert (open_picture(tmp_path / "a.png")[..., 0] == levels >> 8).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_of_32_bits_whose_scale_is_unknown_is_named(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (9, 9), 70_000).save(tmp_path / "a.tiff")
    with pytest.raises(AffsupError, match="32 bits a channel, expected 8 or 16: save it with 8 bits"):
        open_picture(tmp_path / "a.tiff")
    with pytest.raises(AffsupError, match="32 bits a channel"):
        square((tmp_path / "a.tiff").read_bytes(), 8)


@pytest.mark.parametrize("annotated", [(64, 48), (48, 64)])
def test_boxes_fit_a_turned_picture_whether_annotated_as_stored_or_as_shown(
    tmp_path: Path, annotated: tuple[int, int]
) -> None:
    turned = picture(orientation=6)
    assert Image.open(io.BytesIO(turned)).getexif()[ORIENTATION] == 6
    image = {"id": 1, "file_name": "a.jpg", "width": annotated[0], "height": annotated[1]}
    files = coco_of("train", content(images=[image]), a=turned) | coco_of("test", content(images=[image]), a=turned)
    split = scenes(prepare("coco-json", write(tmp_path / "source", files)))
    assert split.pixels(0).shape[:2] == annotated[::-1]


# Files and runs


def test_prepared_data_are_read_where_the_file_system_has_no_locks(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = h5py.File

    def open_without_locks(file: Any, mode: str = "r", *, locking: Any = None, **options: Any) -> h5py.File:
        if locking is not False:
            raise OSError(errno.ENOLCK, "Unable to open file (unable to lock file, errno = 37)")
        return opened(file, mode, locking=locking, **options)

    monkeypatch.setattr(h5py, "File", open_without_locks)
    folder = digits / "digits"
    assert len(read_split(folder, read_image_manifest(folder), "test").labels) == 359


def test_weights_of_a_network_in_data_parallel_are_read(tmp_path: Path) -> None:
    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    torch.save(DataParallel(network).state_dict(), tmp_path / "parallel.pth")
    plain, parallel = (
        build_backbone("resnet18", str(tmp_path / f"{name}.pth"), "torchvision").state_dict()
        for name in ("plain", "parallel")
    )
    assert all(torch.equal(plain[name], parallel[name]) for name in plain)


def test_a_last_batch_of_one_image_is_refused_before_training(digits: Path, tmp_path: Path) -> None:
    fields = {"data.train_images": 65, "train.batch_size": 64, "train.epochs": 1, "train.milestones": []}
    with pytest.raises(UsageError, match="the last batch of 65 training images would be a single one"):
        train_run(load_recipe("minibatch", fields | {"run.device": "cpu"}), digits, RunFolder(tmp_path / "run"))

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import data_prep
from data_prep.build import PrepareResult, build
from data_prep.errors import AffsupError, UsageError
from data_prep.origin import Archive
from data_prep.raw import SceneSet
from data_prep.sources.scene_files import _in_folder
from data_prep.store import SceneManifest, Scenes, read_scenes
from tests.data_prep.conftest import OfficialFiles
from tests.data_prep.scene_sources import Scene, VisualGenome, coco, picture, voc, write_coco

Preparing = Callable[..., PrepareResult]


def prepared(name: str, tmp_path: Path, *sources: Path, **request: object) -> PrepareResult:
    return data_prep.prepare(name, sources=sources, data_dir=tmp_path / "data", **request)


def split(outcome: PrepareResult, name: str) -> Scenes:
    return read_scenes(outcome.folder, outcome.manifest, name)


# VOC 2007


@pytest.fixture
def devkit() -> dict[str, bytes]:
    """A VOC of two training images and one test image, by path below VOC2007."""
    dog, cat = ("dog", 1, 1, 32, 48, 0), ("cat", 33, 5, 64, 40, 1)
    return voc([Scene("000005", [dog, cat]), Scene("000009", [dog])], [Scene("000001", [cat, dog])])


def voc_tars(folder: Path, official: OfficialFiles, devkit: dict[str, bytes]) -> list[Path]:
    """The files as the two official archives have them."""
    test = {name: file for name, file in devkit.items() if "000001" in name or name.endswith("test.txt")}
    train = {name: file for name, file in devkit.items() if name not in test}
    folder.mkdir(exist_ok=True)
    return [
        official.tar(folder / "VOCtrainval_06-Nov-2007.tar", "VOCdevkit/VOC2007", train, "w"),
        official.tar(folder / "VOCtest_06-Nov-2007.tar", "VOCdevkit/VOC2007", test, "w"),
    ]


def test_voc_corners_count_from_one_and_are_inclusive(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    outcome = prepared("voc07", tmp_path, official.folder(tmp_path, "VOC2007", devkit))
    found = split(outcome, "train").objects(0)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 32, 48], [32, 4, 64, 40]])
    assert found.difficult.tolist() == [False, True]
    assert [outcome.manifest.classes[label] for label in found.labels] == ["dog", "cat"]
    assert outcome.manifest.classes == sorted(outcome.manifest.classes)
    assert len(outcome.manifest.classes) == 20
    assert split(outcome, "test").ids.tolist() == [1]


def test_voc_prepares_the_same_from_tars_in_any_order_the_devkit_its_parent_and_its_child(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    tars = voc_tars(tmp_path / "tars", official, devkit)
    official.folder(tmp_path / "unpacked" / "VOCdevkit", "VOC2007", devkit)
    unpacked = tmp_path / "unpacked"
    ways = [tars, tars[::-1], [unpacked], [unpacked / "VOCdevkit"], [unpacked / "VOCdevkit" / "VOC2007"]]
    digests = {prepared("voc07", tmp_path / str(n), *way).manifest.digest for n, way in enumerate(ways)}
    assert len(digests) == 1
    assert prepared("voc07", tmp_path / "mixed", tars[0], unpacked).manifest.digest in digests


def test_voc_2012_beside_it_is_not_taken_for_voc_2007(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    official.folder(tmp_path / "VOCdevkit", "VOC2007", devkit)
    later = dict.fromkeys(devkit, b"x") | {"ImageSets/Main/trainval.txt": b"2008_000001\n"}
    official.folder(tmp_path / "VOCdevkit", "VOC2012", later)
    assert split(prepared("voc07", tmp_path, tmp_path / "VOCdevkit"), "train").ids.tolist() == [5, 9]


def test_links_to_folders_are_followed_once(devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path) -> None:
    official.folder(tmp_path / "disk", "VOC2007", devkit)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "VOC2007").symlink_to(tmp_path / "disk" / "VOC2007")
    (tmp_path / "disk" / "VOC2007" / "loop").symlink_to(tmp_path / "given")
    assert prepared("voc07", tmp_path, tmp_path / "given").manifest.image_counts() == {"train": 2, "test": 1}
    dataset = data_prep.get("voc07")
    assert isinstance(dataset, SceneSet)
    found = list(_in_folder(tmp_path / "given", re.compile(rf".*/(?:{dataset.file_pattern})")))
    assert len(found) == len(devkit)


def test_the_official_voc_archives_are_recognised_and_downloaded(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    tars = voc_tars(tmp_path / "tars", official, devkit)
    archives = tuple(
        Archive(f"http://nowhere.invalid/{path.name}", hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in tars
    )
    dataset = data_prep.get("voc07")
    assert isinstance(dataset, SceneSet)
    dataset = replace(dataset, archives=archives, official_counts={"train": 2, "test": 1})
    manifest = build(dataset, sources=tars, data_dir=tmp_path / "data").manifest
    assert (manifest.source.kind, manifest.source.official, manifest.complete) == ("archive", True, True)
    assert set(manifest.source.files) == {path.name for path in tars}
    changed = build(replace(dataset, archives=archives[:1]), sources=tars, data_dir=tmp_path / "changed").manifest
    assert (changed.source.official, changed.digest) == (False, manifest.digest)
    (tmp_path / "other" / ".downloads").mkdir(parents=True)
    for path in tars:
        path.rename(tmp_path / "other" / ".downloads" / path.name)  # as if they had come
    fetched = build(dataset, data_dir=tmp_path / "other").manifest
    assert (fetched.source.kind, fetched.source.official, fetched.digest) == ("download", True, manifest.digest)


def test_an_archive_alone_lacks_the_other_and_says_so(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    tars = voc_tars(tmp_path, official, devkit)
    with pytest.raises(AffsupError, match=r"VOCtrainval_06-Nov-2007\.tar: has no ImageSets/Main/test\.txt; expected"):
        prepared("voc07", tmp_path, tars[0])


def test_of_several_archives_the_wrong_one_is_named(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    _, test = voc_tars(tmp_path, official, devkit)
    trainval = official.zip(tmp_path / "VOCtrainval.zip", "VOCdevkit/VOC2007", devkit)
    with pytest.raises(AffsupError) as caught:
        prepared("voc07", tmp_path, test, trainval)
    assert str(caught.value).startswith(f"{trainval}: is not an uncompressed tar archive")


BILLION_LAUGHS = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
XML = "Annotations/000009.xml"
SIZED = b"<annotation><size><width>64</width><height>48</height></size>%s</annotation>"
BOX = b"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({XML: BILLION_LAUGHS}, f"{XML}: declares a document type"),
        ({XML: b"<annotation><size>"}, f"{XML}: is not XML"),
        ({XML: b""}, f"{XML}: is not XML"),
        ({XML: BILLION_LAUGHS.decode().encode("utf-16")}, f"{XML}: declares a document type"),
        ({XML: BILLION_LAUGHS.decode().encode("utf-16-be")}, f"{XML}: declares a document type"),
        ({XML: b'<?xml version="1.0" encoding="hex"?><a/>'}, f"{XML}: declares the encoding 'hex', which is not"),
        ({XML: b'<?xml version="1.0" encoding="punycode"?><a/>'}, f"{XML}: declares the encoding 'punycode'"),
        ({XML: bytes(10_000_001)}, f"{XML} has 10,000,001 bytes, expected at most 10,000,000; refused"),
        ({XML: b"<a><object><name>" + b"x" * 10**6 + b"</name></object></a>"}, f"{XML}: has no <size/width>"),
        ({XML: b"<annotation/>"}, f"{XML}: has no <size/width>"),
        ({XML: b"<annotation><size><width>x</width><height>1</height></size></annotation>"}, "<size/width> is 'x'"),
        ({XML: b"<annotation><size><width>nan</width><height>1</height></size></annotation>"}, "<size> is nan x 1"),
        ({XML: SIZED % b"<object/>"}, f"{XML} object 1: has no <name>"),
        ({XML: SIZED % b"<object><name>dog</name></object>"}, f"{XML} object 1: has no <bndbox>"),
        ({XML: SIZED % b"<object><name>dog</name><bndbox/></object>"}, f"{XML} object 1 <bndbox>: has no <xmin>"),
        ({XML: SIZED % b"<object><name>unicorn</name>%s</object>" % BOX}, f"{XML} object 1: class 'unicorn' is not"),
        ({XML: SIZED % b"<object><name>%s</name>%s</object>" % (b"u" * 10**6, BOX)}, "uuu'... is not one of"),
        ({XML: None}, f"has no {XML}"),
        ({"ImageSets/Main/test.txt": None}, "has no ImageSets/Main/test.txt"),
        ({"ImageSets/Main/test.txt": b""}, "contains 2 training and 0 test images"),
        ({"ImageSets/Main/trainval.txt": b"000005\n000005"}, "trainval.txt: lists an image twice"),
        ({"ImageSets/Main/trainval.txt": b"../../etc/passwd"}, "is not an image number"),
        ({"ImageSets/Main/trainval.txt": b"000777"}, "has no Annotations/000777.xml"),
    ],
)  # fmt: skip
def test_a_wrong_voc_file_is_named(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path, change: dict[str, bytes | None], what: str
) -> None:
    files = {name: file for name, file in (devkit | change).items() if file is not None}
    folder = official.folder(tmp_path, "VOC2007", files)
    with pytest.raises(AffsupError) as caught:
        prepared("voc07", tmp_path, folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert what in str(caught.value)
    assert len(str(caught.value)) < 800


def test_an_object_with_three_boxes_is_three_objects(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path
) -> None:
    boxes = b"".join(BOX.replace(b">9<", b">%d<" % right) for right in (9, 20, 40))
    devkit[XML] = SIZED % b"<object><name>cat</name><difficult>1</difficult>%s</object>" % boxes
    outcome = prepared("voc07", tmp_path, official.folder(tmp_path, "VOC2007", devkit))
    found = split(outcome, "train").objects(1)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 9, 9], [0, 0, 20, 20], [0, 0, 40, 40]])
    assert [outcome.manifest.classes[label] for label in found.labels] == ["cat"] * 3
    assert found.difficult.tolist() == [True] * 3


@pytest.mark.parametrize(
    ("encoding", "declaration"),
    [
        ("utf-16", '<?xml version="1.0" encoding="UTF-16"?>'),
        ("utf-16-le", '<?xml version="1.0" encoding="UTF-16"?>'),
        ("utf-16-be", ""),
        ("utf-8-sig", '<?xml version="1.0" encoding="utf-8"?>'),
        ("gbk", "<?xml version='1.0' encoding='GBK'?>"),
        ("latin-1", '<?xml version="1.0" encoding="ISO-8859-1"?>'),
    ],
)
def test_voc_files_with_byte_order_marks_and_other_encodings_are_read(
    devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path, encoding: str, declaration: str
) -> None:
    expected = prepared("voc07", tmp_path / "1", official.folder(tmp_path / "1", "VOC2007", devkit)).manifest.digest
    for name in list(devkit):
        if name.endswith(".xml"):
            devkit[name] = (declaration + devkit[name].decode()).encode(encoding)
        if name.endswith(".txt"):
            devkit[name] = b"\xef\xbb\xbf" + devkit[name].replace(b"\n", b"\r\n")
    assert prepared("voc07", tmp_path / "2", official.folder(tmp_path / "2", "VOC2007", devkit)).manifest.digest == (
        expected
    )


# COCO


@pytest.fixture
def coco_scenes() -> list[Scene]:
    return [
        Scene("42", [(18, 1.5, 2, 30, 40, 0), (1, 0, 0, 64.5, 48, 1), (90, 3, 3, 4, 5, 0)]),
        Scene("7", []),
        Scene("9", [(1, 10, 10, 20, 20, 0)]),
    ]


def test_coco_divides_by_minival_and_numbers_the_classes_by_id(coco_scenes: list[Scene], tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", coco(coco_scenes, [9]), coco_scenes)
    outcome = prepared("coco", tmp_path, folder)
    manifest = outcome.manifest
    assert isinstance(manifest, SceneManifest)
    assert (manifest.classes, manifest.category_ids) == (["person", "dog", "toothbrush"], [1, 18, 90])
    train = split(outcome, "train")
    assert (train.ids.tolist(), split(outcome, "test").ids.tolist()) == ([42, 7], [9])
    found = train.objects(0)
    np.testing.assert_array_equal(found.boxes, [[1.5, 2, 31.5, 42], [0, 0, 64, 48], [3, 3, 7, 8]])
    assert found.labels.tolist() == [1, 0, 2]
    assert found.crowd.tolist() == [False, True, False]
    assert found.relations.tolist() == [[0, 2], [2, 0]]
    assert manifest.splits["train"].without_object == 1
    assert set(manifest.source.files) == {"instances_val2014.json", "instances_val2017.json", "pictures"}


def test_coco_objects_are_told_apart_by_image_in_whatever_order_they_come(
    coco_scenes: list[Scene], tmp_path: Path
) -> None:
    content = coco(coco_scenes, [9])
    content["annotations"] = [content["annotations"][i] for i in (3, 0, 1, 2)]
    outcome = prepared("coco", tmp_path, write_coco(tmp_path / "coco", content, coco_scenes))
    assert split(outcome, "train").objects(0).labels.tolist() == [1, 0, 2]
    assert split(outcome, "test").objects(0).labels.tolist() == [0]


def test_coco_files_are_found_in_several_folders(coco_scenes: list[Scene], tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", coco(coco_scenes, [9]), coco_scenes)
    whole = prepared("coco", tmp_path, folder).manifest
    apart = prepared("coco", tmp_path / "2", folder / "val2014", folder / "annotations").manifest
    assert apart.digest == whole.digest


def test_minival_images_that_val2014_lacks_are_counted(coco_scenes: list[Scene], tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", coco(coco_scenes, [9, 100, 101]), coco_scenes)
    (entry,) = prepared("coco", tmp_path, folder).manifest.left_out
    assert (entry.what, entry.count, entry.examples) == ("images", 2, ["image 100", "image 101"])


def test_coco_without_a_source_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'coco' cannot be downloaded: give .*instances_val2014\.json"):
        prepared("coco", tmp_path)


def drop(key: str, field: str) -> Callable[[dict], None]:
    return lambda content: content[key][0].pop(field)


def put(key: str, field: str, value: object) -> Callable[[dict], None]:
    return lambda content: content[key][0].update({field: value})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: content.pop("annotations"), "instances_val2014.json: has no list 'annotations'"),
        (lambda content: content["images"].append(7), "images[3] is a int, expected an object"),
        (lambda content: content["images"].clear(), "images is empty"),
        (lambda content: content["images"].append(content["images"][0]), "images has id 42 twice"),
        (lambda content: content["categories"].append({"id": 1, "name": "x"}), "the same id twice"),
        (drop("images", "width"), "images[0] has no 'width', expected a whole number"),
        (drop("images", "file_name"), "images[0] has no 'file_name'"),
        (put("images", "height", "48"), "images[0] 'height' is '48', expected a whole number"),
        (put("images", "height", 0), "images[0] is 64 x 0"),
        (drop("categories", "name"), "categories[0] has no 'name'"),
        (put("categories", "name", "\ud800"), "the name of class 2 is '\\ud800', expected 1 to 200 characters"),
        (put("categories", "name", "d" * 10**6), "dddd'..., expected 1 to 200 characters"),
        (put("categories", "name", "a\nb"), "the name of class 2 is 'a\\nb', expected 1 to 200 characters"),
        (put("images", "file_name", "x/\udfff.jpg"), "the name of image 1 is '\\udfff.jpg'"),
        (put("images", "height", "9" * 10**6), "999'..., expected a whole number"),
        (drop("annotations", "bbox"), "annotations[0] has no 'bbox', expected 4 numbers"),
        (put("annotations", "bbox", [1, 2, 3]), "annotations[0] 'bbox' is [1, 2, 3], expected 4 numbers"),
        (put("annotations", "bbox", [1, 2, 3, 10**400]), "expected 4 numbers"),
        (drop("annotations", "iscrowd"), "annotations[0] has no 'iscrowd'"),
        (put("annotations", "image_id", 8), "annotations[0] has image_id 8, which is not in the file"),
        (put("annotations", "category_id", 2), "annotations[0] has category_id 2, which is not in the file"),
        (lambda content: content.update(test=[]), "contains 3 training and 0 test images"),
    ],
)
def test_a_wrong_coco_file_is_named(
    coco_scenes: list[Scene], tmp_path: Path, change: Callable[[dict], None], what: str
) -> None:
    content = coco(coco_scenes, [9])
    change(content)
    with pytest.raises(AffsupError) as caught:
        prepared("coco", tmp_path, write_coco(tmp_path / "coco", content, coco_scenes))
    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "NaN"])
def test_a_coco_file_that_is_no_json_object_is_named(coco_scenes: list[Scene], tmp_path: Path, text: str) -> None:
    folder = write_coco(tmp_path / "coco", coco(coco_scenes, [9]), coco_scenes)
    (folder / "annotations" / "instances_val2014.json").write_text(text)
    with pytest.raises(AffsupError, match=r"instances_val2014\.json: is "):
        prepared("coco", tmp_path, folder)


def test_coco_boxes_that_are_no_numbers_or_too_large_are_counted(tmp_path: Path) -> None:
    boxes = [(1, float("nan"), 0, 5, 5, 0), (1, 1e300, 0, 5, 5, 0), (1, 0, 0, 1e300, 5, 0), (1, 0, 0, 5, 5, 0)]
    scenes = [Scene("1", boxes), Scene("2", [])]
    outcome = prepared("coco", tmp_path, write_coco(tmp_path / "coco", coco(scenes, [2]), scenes))
    assert [(entry.reason, entry.count) for entry in outcome.manifest.left_out] == [
        ("box with numbers that are not finite", 3)
    ]
    assert outcome.manifest.splits["train"].objects == 1


@pytest.mark.parametrize("folder", ["val2014/", "images/val2014/", "../../"])
def test_a_picture_of_coco_is_found_by_its_name_whatever_its_folder(
    coco_scenes: list[Scene], tmp_path: Path, folder: str
) -> None:
    content = coco(coco_scenes, [9])
    expected = prepared("coco", tmp_path / "1", write_coco(tmp_path / "coco", content, coco_scenes)).manifest.digest
    for entry in content["images"]:
        entry["file_name"] = folder + entry["file_name"]
    outcome = prepared("coco", tmp_path / "2", write_coco(tmp_path / "other", content, coco_scenes))
    assert (outcome.manifest.digest, outcome.manifest.left_out) == (expected, [])


# Visual Genome


@pytest.fixture
def genome() -> VisualGenome:
    """Four images of 512x256 and 256x512, so that a box of 1,024 is twice its size in pixels."""
    wide, tall = (512, 256), (256, 512)
    return VisualGenome(
        scenes=[
            Scene("10", [(1, 200, 200, 100, 60), (3, 400, 100, 20, 40)], wide, picture(wide)),
            Scene("4", [], tall, picture(tall)),
            Scene("1593", [(2, 100, 900, 50, 101), (2, 500, 500, 9, 9), (1, 60, 60, 40, 40)], tall, picture(tall)),
            Scene("5", [(3, 512, 256, 200, 200)], wide, picture(wide)),
        ],
        relations=[[(0, 1, 2), (0, 1, 1)], [], [(2, 0, 1)], []],
        split=[0, 2, 2, 0],
    )


def test_visual_genome_boxes_return_to_pixels_and_relations_to_their_image(
    genome: VisualGenome, tmp_path: Path
) -> None:
    outcome = prepared("vg", tmp_path, genome.write(tmp_path / "vg"))
    manifest = outcome.manifest
    assert isinstance(manifest, SceneManifest)
    assert (manifest.classes, manifest.predicates) == (["chair", "leg", "cat"], ["of", "on"])
    train, test = split(outcome, "train"), split(outcome, "test")
    assert (train.ids.tolist(), test.ids.tolist()) == ([10, 5], [4, 1593])
    first, second = train.objects(0), test.objects(1)
    np.testing.assert_array_equal(first.boxes, [[75, 85, 125, 115], [195, 40, 205, 60]])
    assert (first.labels.tolist(), first.relations.tolist()) == ([0, 2], [[0, 1], [0, 1]])
    assert (train.annotations.predicates.tolist(), test.annotations.predicates.tolist()) == ([1, 0], [0])
    np.testing.assert_array_equal(second.boxes[0], [37.5, 424.75, 62.5, 475.25])
    assert second.relations.tolist() == [[2, 0]]
    assert len(test.objects(0).boxes) == 0
    assert (manifest.splits["train"].pairs, manifest.splits["train"].without_pair) == (1, 1)
    assert test.pixels(0).shape == (512, 256, 3)
    assert data_prep.check("vg", tmp_path / "data") == manifest


def test_visual_genome_takes_the_form_with_attributes_and_folders_apart(genome: VisualGenome, tmp_path: Path) -> None:
    plain = prepared("vg", tmp_path, genome.write(tmp_path / "vg")).manifest
    folder = genome.write(tmp_path / "other", suffix="-with-attri")
    for part in ("VG_100K", "VG_100K_2"):
        (folder / part).rename(tmp_path / part)
    sources = [folder, tmp_path / "VG_100K", tmp_path / "VG_100K_2"]
    assert prepared("vg", tmp_path / "2", *sources).manifest.digest == plain.digest


def test_visual_genome_is_read_from_a_tar_archive(
    genome: VisualGenome, official: OfficialFiles, tmp_path: Path
) -> None:
    folder = genome.write(tmp_path / "vg")
    plain = prepared("vg", tmp_path, folder).manifest
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    archive = official.tar(tmp_path / "vg.tar", "vg", files, "w")
    assert prepared("vg", tmp_path / "2", archive).manifest.digest == plain.digest


def test_a_forgotten_folder_of_visual_genome_is_not_half_a_data_set(genome: VisualGenome, tmp_path: Path) -> None:
    folder = genome.write(tmp_path / "vg")
    (folder / "VG_100K_2").rename(tmp_path / "forgotten")
    with pytest.raises(AffsupError, match=r"2 of 4 images are missing, more than 1%; expected .*5\.jpg|.*4\.jpg"):
        prepared("vg", tmp_path, folder)


def test_rows_of_no_image_are_counted(genome: VisualGenome, tmp_path: Path) -> None:
    arrays = genome.arrays()
    arrays["boxes_1024"] = np.concatenate([arrays["boxes_1024"], arrays["boxes_1024"][:1]])
    arrays["labels"] = np.concatenate([arrays["labels"], arrays["labels"][:1]])
    (entry,) = prepared("vg", tmp_path, genome.write(tmp_path / "vg", arrays=arrays)).manifest.left_out
    assert (entry.what, entry.reason, entry.count, entry.examples) == (
        "objects", "of no image", 1, ["VG-SGG.h5 row 6"],
    )  # fmt: skip


def row(key: str, index: object, value: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays[key].__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda arrays: arrays.pop("boxes_1024"), "(has no 'boxes_1024'; found boxes_512"),
        (lambda arrays: arrays.update(split=arrays["split"][:3]), "split has 3 rows, image_data.json 4 images"),
        (lambda arrays: arrays.update(labels=arrays["labels"][:5]), "labels has 5 rows, boxes_1024 6"),
        (lambda arrays: arrays.update(predicates=arrays["predicates"][:1]), "predicates has 1 rows, relationships 3"),
        (lambda arrays: arrays.update(labels=arrays["labels"][:, 0]), "'labels' is int32 [6], expected integers"),
        (lambda arrays: arrays.update(split=arrays["split"] * 1.0), "'split' is float64 [4], expected integers [n]"),
        (
            lambda arrays: arrays.update(img_to_last_rel=arrays["img_to_last_rel"][:2]),
            "img_to_first_rel and img_to_last_rel have 4 and 2 rows, split 4",
        ),
        (row("split", 1, 1), "split row 1 is 1, expected 0 or 2"),
        (row("labels", (4, 0), 4), "labels row 4 is 4, expected 1 to 3"),
        (row("labels", (4, 0), 0), "labels row 4 is 0, expected 1 to 3"),
        (row("predicates", (1, 0), 3), "predicates row 1 is 3, expected 1 to 2"),
        (row("relationships", (2, 1), 5), "relationships row 2 is [4, 5], outside the boxes 2 to 4 of its image"),
        (row("img_to_last_box", 3, 6), "row 3 of img_to_first_box and img_to_last_box is 5 and 6, expected -1 twice"),
        (row("img_to_first_box", 1, 0), "row 1 of img_to_first_box and img_to_last_box is 0 and -1"),
        (row("img_to_first_box", 3, 4), "img_to_first_box and img_to_last_box give row 4 of boxes_1024 twice"),
    ],
)  # fmt: skip
def test_a_wrong_row_of_visual_genome_is_named(
    genome: VisualGenome, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], what: str
) -> None:
    arrays = genome.arrays()
    change(arrays)
    with pytest.raises(AffsupError) as caught:
        prepared("vg", tmp_path, genome.write(tmp_path / "vg", arrays=arrays))
    assert what in str(caught.value)


def compressed(h5: h5py.Group, folder: Path) -> None:
    h5.create_dataset("labels", (2 * 10**9, 1), "i4", chunks=(10**6, 1), compression="gzip")


def external(h5: h5py.Group, folder: Path) -> None:
    h5.create_dataset("labels", (6, 1), "i4", external=[(folder / "private", 0, 24)])


def external_link(h5: h5py.Group, folder: Path) -> None:
    h5["labels"] = h5py.ExternalLink(str(folder / "private"), "x")


def soft_link(h5: h5py.Group, folder: Path) -> None:
    h5["labels"] = h5py.SoftLink("/predicates")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (compressed, "'labels' would take 8,000,000,000 bytes, expected at most 400,000,000; refused"),
        (external, "the values of 'labels' are stored in another file; refused"),
        (external_link, "'labels' is a link to another path or file; refused"),
        (soft_link, "'labels' is a link to another path or file; refused"),
        (lambda h5, folder: h5.create_group("labels"), "'labels' is a group, expected a data set"),
        (lambda h5, folder: h5.create_dataset("labels", (6, 1), dtype=h5py.string_dtype()), "expected integers"),
        (lambda h5, folder: h5.create_dataset("labels", data=h5py.Empty("i4")), "None"),
        (lambda h5, folder: h5.create_dataset("labels", data=np.zeros((6, 1), [("a", "i4")])), "expected integers"),
        (lambda h5, folder: h5.create_dataset("labels", (6, 1), dtype=h5py.ref_dtype), "expected integers"),
    ],
)
def test_an_h5_with_labels_of_another_kind_or_place_is_refused(
    genome: VisualGenome, tmp_path: Path, make: Callable[[h5py.Group, Path], None], what: str
) -> None:
    folder = genome.write(tmp_path / "vg")
    (tmp_path / "private").write_bytes(bytes(24))
    with h5py.File(folder / "VG-SGG.h5", "r+") as h5:
        del h5["labels"]
        make(h5, tmp_path)
    with pytest.raises(AffsupError) as caught:
        prepared("vg", tmp_path, folder)
    assert f"{folder}: VG-SGG.h5: truncated or damaged (" in str(caught.value)
    assert what in str(caught.value)


def test_a_truncated_h5_is_named(genome: VisualGenome, tmp_path: Path) -> None:
    folder = genome.write(tmp_path / "vg")
    whole = (folder / "VG-SGG.h5").read_bytes()
    for part in (0, 100, len(whole) // 2, len(whole) - 10):
        (folder / "VG-SGG.h5").write_bytes(whole[:part])
        with pytest.raises(AffsupError, match=r"VG-SGG\.h5: .*(truncated|damaged|signature)"):
            prepared("vg", tmp_path, folder)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("image_data.json", "{}", "image_data.json: is a dict, expected a list of images"),
        ("image_data.json", '[{"image_id": 3, "width": 9}]', "image_data.json: entry 0 has no valid 'height'"),
        ("image_data.json", '[{"image_id": 3, "width": 9, "height": 0}]', "entry 0 has no valid 'height'"),
        ("image_data.json", "[3]", "image_data.json: entry 0 has no valid 'image_id'"),
        ("image_data.json", json.dumps([{"image_id": 3, "width": 9, "height": 9}] * 2), "image_id that occurs twice"),
        ("VG-SGG-dicts.json", "{}", "VG-SGG-dicts.json: 'idx_to_label' is not a table of names"),
        ("VG-SGG-dicts.json", '{"idx_to_label": {"1": "a", "3": "b"}}', "'idx_to_label' is not a table of names"),
        ("VG-SGG-dicts.json", "no json", "VG-SGG-dicts.json: is not JSON"),
        ("VG-SGG-dicts.json", None, "has no VG-SGG-dicts.json; expected the folders with VG_100K/"),
    ],
)  # fmt: skip
def test_a_wrong_json_of_visual_genome_is_named(
    genome: VisualGenome, tmp_path: Path, name: str, text: str | None, what: str
) -> None:
    folder = genome.write(tmp_path / "vg")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(AffsupError) as caught:
        prepared("vg", tmp_path, folder)
    assert what in str(caught.value)


@pytest.mark.real_data
def test_the_real_vocabulary_of_vg150_is_read(real_data: Path, genome: VisualGenome, tmp_path: Path) -> None:
    folder = genome.write(tmp_path / "vg", suffix="-with-attri")
    vocabulary = real_data / "vg150" / "VG-SGG-dicts-with-attri.json"
    (folder / "VG-SGG-dicts-with-attri.json").write_bytes(vocabulary.read_bytes())
    manifest = prepared("vg", tmp_path, folder).manifest
    assert isinstance(manifest, SceneManifest)
    assert (len(manifest.classes), len(manifest.predicates)) == (150, 50)
    assert (manifest.classes[0], manifest.classes[-1]) == ("airplane", "zebra")
    assert manifest.predicates[30] == json.loads(vocabulary.read_text())["idx_to_predicate"]["31"]


# Real data


@pytest.mark.real_data
def test_the_real_voc_subset_prepares_and_verifies(real_data: Path, tmp_path: Path) -> None:
    outcome = prepared("voc07", tmp_path, real_data / "voc_mini" / "VOCdevkit")
    manifest = outcome.manifest
    assert manifest.image_counts() == {"train": 672, "test": 600}
    assert manifest.digest == "c069d7346dc20bb4a009ad2135d2e485094f33aecc035137ac492d82e30b6eca"
    assert sum(part.objects for part in manifest.splits.values()) == 4033
    assert manifest.left_out == []
    assert data_prep.check("voc07", tmp_path / "data") == manifest


@pytest.mark.real_data
def test_the_real_coco_subset_prepares_and_verifies(real_data: Path, tmp_path: Path) -> None:
    outcome = prepared("coco", tmp_path, real_data / "coco_mini")
    manifest = outcome.manifest
    assert manifest.image_counts() == {"train": 341, "test": 328}
    assert manifest.digest == "28b7bccceea330a1afb21865ade2a00fcc3de945853e5dc82d8de956405e5be0"
    assert sum(part.objects for part in manifest.splits.values()) == 5604
    assert (len(manifest.classes), manifest.classes[0], manifest.category_ids[-1]) == (80, "person", 90)
    assert data_prep.check("coco", tmp_path / "data") == manifest
    for i in range(0, 300, 30):
        scenes = split(outcome, "test")
        assert scenes.pixels(i).shape == (scenes.sizes[i, 1], scenes.sizes[i, 0], 3)

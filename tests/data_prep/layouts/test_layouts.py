from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_prep
from data_prep.build import PrepareResult
from data_prep.errors import AffsupError, UsageError
from data_prep.layouts import own_data_set, split_of
from data_prep.raw import ImageSet, SceneSet
from data_prep.store import Scenes, read_image_manifest, read_manifest, read_scenes, read_split
from tests.data_prep.conftest import OfficialFiles
from tests.data_prep.scene_sources import Scene, coco, coco_name, picture, voc, write_coco


def level(value: int, size: tuple[int, int] = (90, 70), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture of one level of grey."""
    out = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(out, kind)
    return out.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def prepare(layout: str, source: Path, size: int | None = None, **request: object) -> PrepareResult:
    data = source.parent / "data"
    return data_prep.prepare(own_data_set(layout, "mine", size), sources=[source], data_dir=data, **request)


def split(result: PrepareResult, name: str) -> Scenes:
    return read_scenes(result.folder, result.manifest, name)


# Class folders


def class_folders(counts: dict[str, int], first: int = 0) -> dict[str, bytes]:
    """Pictures of different levels, `first`, `first` + 1, ..., by path."""
    paths = [f"{folder}/{number:02d}.png" for folder, count in counts.items() for number in range(count)]
    return {path: level(first + number) for number, path in enumerate(paths)}


def test_class_folders_are_divided_into_train_val_and_test(tmp_path: Path) -> None:
    result = prepare("folder", write(tmp_path / "photos", class_folders({"b": 10, "a": 15})), 16)
    manifest = read_image_manifest(result.folder)
    assert manifest.classes == ["a", "b"]
    assert manifest.image_counts() == {"train": 18, "val": 2, "test": 5}
    assert manifest.image_shape == [3, 16, 16]
    assert manifest.complete
    seen = []
    for name in ("train", "val", "test"):
        stored = read_split(result.folder, manifest, name)
        levels = stored.images[:, 0, 0, 0]
        assert (stored.images == levels[:, None, None, None]).all()
        assert stored.labels.tolist() == [int(value < 10) for value in levels]
        seen.extend(levels.tolist())
    assert sorted(seen) == list(range(25))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Test")])
def test_folders_of_splits_are_kept(tmp_path: Path, names: tuple[str, str, str]) -> None:
    files = {}
    for number, name in enumerate(names):
        files |= class_folders({f"{name}/dog": 4, f"{name}/cat/indoor": 3}, 10 * number)
    result = prepare("folder", write(tmp_path / "photos", files))
    manifest = read_image_manifest(result.folder)
    assert manifest.image_shape == [3, 64, 64]
    assert (manifest.classes, manifest.validation) == (["cat", "dog"], None)
    for number, name in enumerate(("train", "val", "test")):
        levels = read_split(result.folder, manifest, name).images[:, 0, 0, 0]
        assert sorted(levels.tolist()) == list(range(10 * number, 10 * number + 7))
    limited = prepare("folder", tmp_path / "photos", limit=5).manifest
    assert limited.image_counts() == {"train": 5, "val": 7, "test": 7}
    assert not limited.complete


def test_a_validation_folder_without_a_test_folder_is_the_test_set(tmp_path: Path) -> None:
    files = class_folders({"train/a": 10, "train/b": 10}) | class_folders({"val/a": 3, "val/b": 3})
    result = prepare("folder", write(tmp_path / "photos", files))
    assert result.manifest.image_counts() == {"train": 18, "val": 2, "test": 6}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    result = prepare("folder", write(tmp_path / "photos", class_folders({"bus": 5, "train": 5})))
    assert result.manifest.classes == ["bus", "train"]


def test_photographs_of_any_size_mode_and_format_are_scaled_and_cropped_about_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200  # the centre square
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "PNG")
    files = {
        "a/wide.png": out.getvalue(),
        "a/grey.jpg": level(99, (7, 300), "JPEG", "L"),
        "a/palette.gif": level(99, (30, 30), "GIF"),
        "b/cmyk.JPEG": level(99, (500, 400), "JPEG", "CMYK"),
        "b/turned.jpg": picture((64, 48), orientation=6),
        "b/notes.txt": b"not a picture",
        "b/.hidden.png": b"not a picture",
        "__MACOSX/b/._cmyk.jpg": b"not a picture",
        ".cache/x/y.png": b"not a picture",
    }
    result = prepare("folder", write(tmp_path / "photos", files), 20)
    manifest = result.manifest
    assert manifest.classes == ["a", "b"]
    parts = [read_split(result.folder, manifest, name).images for name in ("train", "val", "test")]
    images = np.concatenate(parts)
    assert len(images) == 5
    assert sorted(round(float(image.mean()), -1) for image in images)[1:] == pytest.approx([100] * 3 + [200], abs=12)


def test_preparing_again_reads_what_changed(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", class_folders({"a": 5, "b": 5}))
    first = prepare("folder", source, 16)
    assert prepare("folder", source, 16).status == "up to date"
    assert prepare("folder", source, 24).status == "prepared"
    assert prepare("folder", source, 16).manifest.digest == first.manifest.digest
    (source / "a" / "00.png").write_bytes(level(250))
    assert prepare("folder", source, 16).manifest.digest != first.manifest.digest


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"photo.png": level(1)}, "contains no photographs in folders"),
        ({}, "contains no photographs in folders"),
        ({"train/a.png": level(1), "test/b/a.png": level(1)}, "train/a.png: expected a folder for each class in train"),
        (class_folders({"test/a": 3, "val/a": 3}), "but none of training images: expected train and test"),
        (class_folders({"train/a": 3, "test/a": 3, "test/new": 1}), "class new of test has no training images"),
        (class_folders({"a": 1, "b": 1}), "contains 2 images; expected at least 3"),
        (class_folders({"a": 5}) | {"a/broken.png": b"x"}, "a/broken.png: cannot be decoded (of no known format)"),
        (class_folders({"a\x1b[2J": 5}), "the name of class 1 is 'a\\x1b[2J'"),
    ],
)
def test_what_is_wrong_with_class_folders_is_named(tmp_path: Path, files: dict[str, bytes], what: str) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    with pytest.raises(AffsupError) as caught:
        prepare("folder", write(source, files))
    assert str(caught.value).startswith(f"{source}: ")
    assert what in str(caught.value)
    assert not (tmp_path / "data" / "mine").exists()


@pytest.mark.parametrize(
    ("layout", "name", "size", "what"),
    [
        ("folders", "mine", None, r"no layout 'folders' \(did you mean 'folder'\?\)"),
        ("folder", "../mine", None, "--name '../mine': expected letters"),
        ("folder", "folder", None, "--name 'folder': expected letters"),
        ("folder", "mine", 7, "--size 7: expected 8 to 512 pixels"),
        ("coco-json", "mine", 64, "--size 64: images of coco-json keep their size"),
    ],
)
def test_a_wrong_definition_is_refused(layout: str, name: str, size: int | None, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        own_data_set(layout, name, size)


def test_the_source_is_one_folder(tmp_path: Path) -> None:
    for sources in ([], [tmp_path, tmp_path], [tmp_path / "none"]):
        with pytest.raises(UsageError, match=r"--from .*expected a folder with a folder of photographs"):
            data_prep.prepare(own_data_set("folder", "mine"), sources=sources, data_dir=tmp_path)


# COCO's JSON


@pytest.fixture
def scenes() -> list[Scene]:
    return [
        Scene("42", [(18, 1.5, 2, 30, 40, 0), (1, 0, 0, 64.5, 48, 1), (90, 3, 3, 4, 5, 0)]),
        Scene("7", []),
        Scene("9", [(1, 10, 10, 20, 20, 0), (18, 5, 5, 9, 9, 0)]),
    ]


def coco_files(scenes: list[Scene], split: str, relations: list[dict] | None = None) -> dict[str, bytes]:
    """A folder of a split as annotation tools export it: its pictures and `_annotations.coco.json`."""
    content = coco(scenes, [])
    del content["test"]
    for number, entry in enumerate(content["annotations"], start=100):
        entry["id"] = number
    if relations is not None:
        content["rel_categories"] = [{"id": 5, "name": "on"}, {"id": 2, "name": "near"}]
        content["rel_annotations"] = relations
    files = {f"{split}/{coco_name(scene.name)}": scene.picture for scene in scenes if scene.picture is not None}
    return files | {f"{split}/_annotations.coco.json": json.dumps(content).encode()}


def test_a_json_file_for_each_split_gives_the_objects_of_coco(scenes: list[Scene], tmp_path: Path) -> None:
    files = coco_files(scenes[:2], "train") | coco_files(scenes[2:], "test")
    own = prepare("coco-json", write(tmp_path / "mine", files))
    official = write_coco(tmp_path / "coco", coco(scenes, [9]), scenes)
    expected = data_prep.prepare("coco", sources=[official], data_dir=tmp_path / "data")
    assert own.manifest.splits == expected.manifest.splits
    assert own.manifest.category_ids == [1, 18, 90]
    assert own.manifest.complete
    for name in ("train", "test"):
        for index in range(len(split(own, name))):
            ours, theirs = split(own, name).objects(index), split(expected, name).objects(index)
            for field in ("boxes", "labels", "crowd", "relations"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_relations_between_objects_are_read(scenes: list[Scene], tmp_path: Path) -> None:
    relations = [
        {"id": 1, "image_id": 9, "subject_id": 104, "object_id": 103, "predicate_id": 5},
        {"id": 2, "image_id": 42, "subject_id": 102, "object_id": 100, "predicate_id": 2},
        {"id": 3, "image_id": 9, "subject_id": 103, "object_id": 104, "predicate_id": 2},
    ]
    files = coco_files(scenes, "train", relations) | coco_files(scenes[1:2], "test", [])
    result = prepare("coco-json", write(tmp_path / "mine", files))
    assert (result.manifest.relations, result.manifest.predicates) == ("annotated", ["near", "on"])
    train = split(result, "train")
    assert [train.objects(index).relations.tolist() for index in range(3)] == [[[2, 0]], [], [[1, 0], [0, 1]]]
    assert train.annotations.predicates.tolist() == [0, 1, 0]


def test_a_single_json_file_is_divided_and_of_three_each_is_a_split(scenes: list[Scene], tmp_path: Path) -> None:
    single = coco_files(scenes, ".")
    result = prepare("coco-json", write(tmp_path / "1" / "mine", {name[2:]: file for name, file in single.items()}))
    assert result.manifest.image_counts() == {"train": 2, "test": 1}
    files: dict[str, bytes] = {}
    for scene, name in zip(scenes, ("train", "valid", "test"), strict=True):
        files |= coco_files([scene], name)
    result = prepare("coco-json", write(tmp_path / "3" / "mine", files))
    assert result.manifest.image_counts() == {"train": 1, "val": 1, "test": 1}
    assert [split(result, name).ids.tolist() for name in ("train", "val", "test")] == [[42], [7], [9]]
    assert result.manifest.complete
    assert result.manifest.split_table()[0] == ("images", 1, 1, 1)
    assert result.manifest.class_table()[0] == ("person", 1, 0, 1)
    assert data_prep.check("mine", result.folder.parent) == result.manifest


def test_images_without_a_related_pair_are_left_out_if_asked(scenes: list[Scene], tmp_path: Path) -> None:
    relations = [{"id": 1, "image_id": 9, "subject_id": 104, "object_id": 103, "predicate_id": 5}]
    files = coco_files(scenes, "train", relations) | coco_files(
        scenes[2:], "test", [{"id": 1, "image_id": 9, "subject_id": 101, "object_id": 100, "predicate_id": 2}]
    )
    source = write(tmp_path / "mine", files)
    result = prepare("coco-json", source, drop_empty=True)
    assert split(result, "train").ids.tolist() == [9]
    (entry,) = result.manifest.left_out
    assert (entry.what, entry.reason, entry.count) == ("images", "without a related pair", 2)
    assert not result.manifest.complete
    assert prepare("coco-json", source, drop_empty=True).status == "up to date"
    assert prepare("coco-json", source).manifest.image_counts() == {"train": 3, "test": 1}
    with pytest.raises(UsageError, match="--drop-empty is for scenes"):
        data_prep.prepare("digits", data_dir=tmp_path, drop_empty=True)


@pytest.mark.parametrize("place", ["", "images/", "images/train/", "../mine/", "C:\\photos\\"])
def test_pictures_are_found_whatever_folder_the_file_gives(scenes: list[Scene], tmp_path: Path, place: str) -> None:
    content = coco(scenes, [])
    for entry in content["images"]:
        entry["file_name"] = place + entry["file_name"]
    files = {f"images/train/{coco_name(scene.name)}": scene.picture or b"" for scene in scenes}
    files["annotations/instances_train2017.json"] = json.dumps(content).encode()
    result = prepare("coco-json", write(tmp_path / "mine", files))
    assert sum(result.manifest.image_counts().values()) == 3
    assert result.manifest.left_out == []


def test_a_picture_in_two_places_is_taken_from_the_folder_of_its_file(scenes: list[Scene], tmp_path: Path) -> None:
    files = coco_files(scenes, "train") | coco_files(scenes[:1], "test")
    files[f"test/{coco_name('42')}"] = picture(kind="PNG")
    result = prepare("coco-json", write(tmp_path / "mine", files))
    assert split(result, "test").encoded(0)[:4] == b"\x89PNG"
    assert split(result, "train").encoded(0)[:2] == b"\xff\xd8"


def test_ambiguous_pictures_are_refused(scenes: list[Scene], tmp_path: Path) -> None:
    files = {f"{place}/{coco_name('42')}": picture() for place in ("a/x", "b/y")}
    files["c/train.json"] = json.dumps(coco(scenes[:1], [])).encode()
    with pytest.raises(AffsupError, match=r"a/x/.* and b/y/.*: which of them is annotated is ambiguous"):
        prepare("coco-json", write(tmp_path / "mine", files))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"train/_annotations.coco.json": None, "val.json": b"{}"}, "has no JSON file of training images such as tr"),
        ({"train/_annotations.coco.json": b"{}", "test/_annotations.coco.json": b"{}"}, "has no list 'categories'"),
        ({"train/instances.json": b"{}"}, "several files of split train: train/_annotations.coco.json and train/inst"),
        (
            {"test/_annotations.coco.json": b'{"categories": [{"id": 1, "name": "x"}]}'},
            "gives id 1 the name 'person', another file 'x'",
        ),
        ({"train/_annotations.coco.json": b"[]"}, "train/_annotations.coco.json: is a list, expected an object"),
    ],
)
def test_what_is_wrong_with_json_files_is_named(
    scenes: list[Scene], tmp_path: Path, change: dict[str, bytes | None], what: str
) -> None:
    files = coco_files(scenes, "train") | coco_files(scenes[:1], "test") | change
    source = write(tmp_path / "mine", {name: file for name, file in files.items() if file is not None})
    with pytest.raises(AffsupError) as caught:
        prepare("coco-json", source)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("relation", "what"),
    [
        ({"subject_id": 100, "object_id": 103, "predicate_id": 2}, "rel_annotations[0] relates objects of different"),
        ({"subject_id": 100, "object_id": 9, "predicate_id": 2}, "[0] has object_id 9, which is not in the file"),
        ({"subject_id": 100, "object_id": 101, "predicate_id": 1}, "[0] has predicate_id 1, which is not in the file"),
        ({"subject_id": "x", "object_id": 101, "predicate_id": 1}, "[0] 'subject_id' is 'x', expected a whole number"),
    ],
)
def test_wrong_relations_are_named(scenes: list[Scene], tmp_path: Path, relation: dict, what: str) -> None:
    files = coco_files(scenes, "train", [relation]) | coco_files(scenes[:1], "test", [])
    with pytest.raises(AffsupError) as caught:
        prepare("coco-json", write(tmp_path / "mine", files))
    assert what in str(caught.value)


# VOC's XML


@pytest.fixture
def devkit() -> dict[str, bytes]:
    dog, cat = ("dog", 1, 1, 32, 48, 0), ("cat", 33, 5, 64, 40, 1)
    return voc([Scene("000005", [dog, cat]), Scene("000009", [dog])], [Scene("000001", [cat, dog])])


def test_a_devkit_gives_the_objects_of_voc(devkit: dict[str, bytes], official: OfficialFiles, tmp_path: Path) -> None:
    own = prepare("voc-xml", write(tmp_path / "mine", devkit))
    expected = data_prep.prepare(
        "voc07", sources=[official.folder(tmp_path, "VOC2007", devkit)], data_dir=tmp_path / "data"
    )
    assert own.manifest.classes == ["cat", "dog"]
    for name in ("train", "test"):
        for index in range(len(split(expected, name))):
            ours, theirs = split(own, name).objects(index), split(expected, name).objects(index)
            for field in ("boxes", "difficult", "relations"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
            assert split(own, name).encoded(index) == split(expected, name).encoded(index)


def test_annotations_beside_their_pictures_are_read_by_folder(devkit: dict[str, bytes], tmp_path: Path) -> None:
    files = {}
    for path, content in devkit.items():
        place = "test" if "000001" in path else "train"
        if not path.endswith(".txt"):
            files[f"{place}/photo {path.rpartition('/')[2]}"] = content
    result = prepare("voc-xml", write(tmp_path / "mine", files))
    assert result.manifest.image_counts() == {"train": 2, "test": 1}
    assert split(result, "train").names == ["train/photo 000005.jpg", "train/photo 000009.jpg"]


def test_annotations_without_splits_are_divided(devkit: dict[str, bytes], tmp_path: Path) -> None:
    files = {path: content for path, content in devkit.items() if not path.endswith(".txt")}
    result = prepare("voc-xml", write(tmp_path / "mine", files))
    assert result.manifest.image_counts() == {"train": 2, "test": 1}


def test_the_picture_may_be_named_in_the_file(devkit: dict[str, bytes], tmp_path: Path) -> None:
    xml = devkit["Annotations/000009.xml"].replace(b"<size>", b"<filename>other.png</filename><size>")
    devkit |= {"Annotations/000009.xml": xml, "JPEGImages/other.png": picture(kind="PNG")}
    del devkit["JPEGImages/000009.jpg"]
    assert split(prepare("voc-xml", write(tmp_path / "mine", devkit)), "train").names[1] == "JPEGImages/other.png"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"ImageSets/Main/test.txt": b"000001\n7\n"}, "ImageSets/Main/test.txt: '7' has no annotation file 7.xml"),
        ({"ImageSets/Main/trainval.txt": None}, "has a split test, but none of training images"),
        ({"other/000009.xml": b"<a/>"}, "Annotations/000009.xml have the same name"),
        ({"Annotations/000009.xml": b"<a><size><width>9</width></size></a>"}, "000009.xml: has no <size/height>"),
    ],
)
def test_what_is_wrong_with_xml_files_is_named(
    devkit: dict[str, bytes], tmp_path: Path, change: dict[str, bytes | None], what: str
) -> None:
    files = {name: file for name, file in (devkit | change).items() if file is not None}
    with pytest.raises(AffsupError) as caught:
        prepare("voc-xml", write(tmp_path / "mine", files))
    assert what in str(caught.value)


# Names


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train.json", "train"),
        ("annotations/instances_val2017.json", "val"),
        ("instances_train2017.json", "train"),
        ("test/_annotations.coco.json", "test"),
        ("valid/_annotations.coco.json", "val"),
        ("my-test-set.json", "test"),
        ("train_and_test.json", None),
        ("result.json", None),
        ("training/all.json", "train"),
    ],
)
def test_the_split_of_a_file_is_told_by_its_name_or_folder(path: str, expected: str | None) -> None:
    assert split_of(path) == expected


# Elsewhere


def test_a_prepared_set_of_ones_own_is_known_by_its_name(
    scenes: list[Scene], devkit: dict[str, bytes], tmp_path: Path
) -> None:
    folder = prepare("folder", write(tmp_path / "photos", class_folders({"a": 5, "b": 5}))).folder
    found = data_prep.get("mine", folder.parent)
    assert isinstance(found, ImageSet)
    assert not found.embedded
    assert data_prep.check("mine", folder.parent) == read_manifest(folder)
    prepare("voc-xml", write(tmp_path / "mine", devkit))
    found = data_prep.get("mine", folder.parent)
    assert isinstance(found, SceneSet)
    assert not found.categories
    with pytest.raises(UsageError, match=r"no data set 'mine': .* or prepare your own"):
        data_prep.get("mine", tmp_path / "elsewhere")


def test_damage_names_the_command_that_prepares_it_again(tmp_path: Path) -> None:
    folder = prepare("folder", write(tmp_path / "photos", class_folders({"a": 5, "b": 5})), 16).folder
    (folder / "images.h5").write_bytes(b"damaged")
    remedy = rf"run `affsup prepare folder --from PATH --name mine --size 16 --data {folder.parent}`"
    with pytest.raises(AffsupError, match=remedy):
        read_split(folder, read_manifest(folder), "train")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(AffsupError, match="run `affsup prepare mine"):
        read_manifest(folder)


DEFINITION = """
import numpy as np
from data_prep.raw import ImageSet, RawImages, RawSplit
from data_prep.origin import Origin

def read(files):
    images = np.frombuffer(files["images.bin"], np.uint8).reshape(-1, 4, 4, 1)
    labels = np.arange(len(images)) % 2
    return RawImages(("even", "odd"), (1, 4, 4), RawSplit.from_arrays(images[:-3], labels[:-3]),
                     RawSplit.from_arrays(images[-3:], labels[-3:]))

DATASET = ImageSet(
    name="bits", summary="random bits", official_counts={}, read=read,
    origin=Origin("", "", 0, root="bits", members=("images.bin",), max_bytes=10**6, max_members=10,
                  max_member_bytes=10**6),
)
"""


def test_a_data_set_is_defined_by_a_python_file(tmp_path: Path) -> None:
    (tmp_path / "bits.py").write_text(DEFINITION)
    content = np.random.default_rng(0).integers(0, 256, 20 * 16, dtype=np.uint8).tobytes()
    source = write(tmp_path / "files", {"images.bin": content})
    result = data_prep.prepare(data_prep.load_file(tmp_path / "bits.py"), sources=[source], data_dir=tmp_path / "data")
    assert result.manifest.image_counts() == {"train": 16, "val": 1, "test": 3}
    assert result.manifest.complete
    assert data_prep.get("bits", tmp_path / "data").official_counts == {"train": 17, "test": 3}
    (result.folder / "images.h5").unlink()
    with pytest.raises(AffsupError, match=rf"run `affsup prepare {tmp_path}/bits\.py --from PATH --data"):
        read_split(result.folder, result.manifest, "train")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("DATASET = 7", "is a int, expected an ImageSet or a SceneSet"),
        ("x = 1", "cannot be loaded: AttributeError"),
        ("import nothing_of_that_name", "cannot be loaded: ModuleNotFoundError"),
        ("def", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_python_file_that_defines_no_data_set_is_named(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "bits.py").write_text(text)
    with pytest.raises(UsageError, match=rf"bits\.py {what}"):
        data_prep.load_file(tmp_path / "bits.py")
    with pytest.raises(UsageError, match=r"none\.py cannot be loaded: FileNotFoundError"):
        data_prep.load_file(tmp_path / "none.py")


def test_an_installed_package_defines_data_sets_by_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bits.py").write_text(DEFINITION)
    info = tmp_path / "bits-1.0.dist-info"
    write(
        info, {"METADATA": b"Name: bits\nVersion: 1.0\n", "entry_points.txt": b"[affsup.datasets]\nx = bits:DATASET\n"}
    )
    monkeypatch.syspath_prepend(tmp_path)
    data_prep.datasets.cache_clear()
    try:
        assert data_prep.get("bits").summary == "random bits"
        (info / "entry_points.txt").write_text("[affsup.datasets]\nx = bits:read\n")
        data_prep.datasets.cache_clear()
        with pytest.raises(UsageError, match=r"entry point 'x' \(bits:read\) is a function, expected an ImageSet"):
            data_prep.datasets()
    finally:
        monkeypatch.undo()
        data_prep.datasets.cache_clear()

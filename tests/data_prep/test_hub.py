"""Files of the Hugging Face hub's data sets: small ones of the same format as the hub's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep
from data_prep.errors import AffsupError, SourceError, UsageError
from data_prep.layouts import own_data_set
from data_prep.sources.parquet import read_labelled_images
from data_prep.store import read_image_manifest, read_split
from tests.data_prep.conftest import OfficialFiles
from tests.data_prep.scene_sources import mit67, picture

Row = tuple[bytes | None, str | None, int | None]
LIMITS = {"max_rows": 1000, "max_bytes": 10_000_000, "max_image": 100_000}


def write_parquet(path: Path, rows: Sequence[Row], labels: Sequence[str] | None) -> Path:
    """A file as `datasets` writes it: `image` {bytes, path}, `label`, and the features in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": content, "path": name} for content, name, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": images, "label": pa.array([label for *_, label in rows], pa.int64())})
    if labels is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(labels), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


@pytest.fixture
def files(official: OfficialFiles) -> dict[str, bytes]:
    """The archive's files, with the annotations of the validation images in the order of their numbers."""
    files = official.tiny_imagenet()
    lines = files["val/val_annotations.txt"].splitlines(keepends=True)
    return files | {"val/val_annotations.txt": b"".join(reversed(lines))}


def hub_folder(folder: Path, files: dict[str, bytes], *, named: bool) -> Path:
    """The files as parquet: labels in alphabetical order, rows in the order of labels and image numbers."""
    wnids = sorted(files["wnids.txt"].decode().split())
    number = re.compile(r"(\d+)\.JPEG")
    train: list[tuple[int, int, Row]] = []
    for name, content in files.items():
        if match := re.fullmatch(r"train/(n\d+)/images/(.*\.JPEG)", name):
            label = wnids.index(match[1])
            order = int(number.search(match[2])[1])  # type: ignore[index]
            train.append((label, order, (content, match[2] if named else None, label)))
    valid: list[Row] = []
    for line in files["val/val_annotations.txt"].decode().splitlines():
        name, wnid = line.split("\t")[:2]
        valid.append((files[f"val/images/{name}"], name if named else None, wnids.index(wnid)))
    rows = [row for *_, row in sorted(train, key=lambda each: each[:2])]
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:20], wnids)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[20:], wnids)
    write_parquet(folder / "data" / "valid-00000-of-00001-70d52db3c749a935.parquet", valid, wnids)
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_parquet_with_the_official_lists_beside_it_gives_the_data_of_the_archive(
    official: OfficialFiles, files: dict[str, bytes], tmp_path: Path, named: bool
) -> None:
    archive = official.zip(tmp_path / "tiny.zip", "tiny-imagenet-200", files)
    folder = hub_folder(tmp_path / "hub", files, named=named)
    for name in ("wnids.txt", "words.txt"):
        (folder / name).write_bytes(files[name])
    expected = data_prep.prepare("tiny-imagenet", sources=[archive], data_dir=tmp_path / "zip").manifest
    found = data_prep.prepare("tiny-imagenet", sources=[folder], data_dir=tmp_path / "parquet").manifest
    assert found.digest == expected.digest
    assert found.source.official is None
    assert len(found.source.files) == 5
    again = data_prep.prepare("tiny-imagenet", sources=[folder], data_dir=tmp_path / "parquet")
    assert again.status == "up to date"


def test_parquet_alone_gives_the_same_images_with_ids_as_names(files: dict[str, bytes], tmp_path: Path) -> None:
    source = hub_folder(tmp_path / "hub", files, named=False) / "data"
    result = data_prep.prepare("tiny-imagenet", sources=[source], data_dir=tmp_path / "data")
    manifest = read_image_manifest(result.folder)
    assert manifest.classes == ["n00000001", "n00000002", "n00000003"]
    assert manifest.image_counts() == {"train": 33, "val": 3, "test": 12}
    test = read_split(result.folder, manifest, "test")
    assert test.images[:, 9, 9, 0].tolist() == [200] * 4 + [201] * 4 + [202] * 4
    assert test.labels.tolist() == [1] * 4 + [0] * 4 + [2] * 4


GREY = OfficialFiles().jpeg(9)


@pytest.mark.parametrize(
    ("rows", "labels", "what"),
    [
        ([(GREY, None, 0)], None, "its schema does not name the labels"),
        ([(GREY, None, 0)], [], "its schema does not name the labels"),
        ([(GREY, None, 1)], ["n00000001"], "a label is 1, expected 0 to 0"),
        ([(GREY, None, -1)], ["n00000001"], "a label is -1, expected 0 to 0"),
        ([(GREY, None, None)], ["n00000001"], "a label is None, expected 0 to 0"),
        ([(None, "a.JPEG", 0)], ["n00000001"], "the column 'image' is .*, expected {bytes, path}"),
        ([(bytes(200_000), None, 0)], ["n00000001"], "an image has 200,000 bytes"),
        ([(b"", None, 0)] * 1001, ["n00000001"], "has 1,001 rows, expected at most 1,000; refused"),
        ([(bytes(90_000), None, 0)] * 500, ["n00000001"], "all [0-9,]+ so far; refused"),
    ],
)
def test_wrong_parquet_is_named(tmp_path: Path, rows: list[Row], labels: list[str] | None, what: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows, labels)
    with pytest.raises(SourceError, match=rf"a\.parquet.*{what}"):
        read_labelled_images(path, **LIMITS)


def test_columns_of_another_data_set_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="its schema does not name the labels"):
        read_labelled_images(tmp_path / "a.parquet", **LIMITS)


def test_a_damaged_parquet_file_is_named_at_every_place(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    rows = [(random.bytes(300), f"{number}.JPEG", 0) for number in range(40)]
    path = write_parquet(tmp_path / "a.parquet", rows, ["n00000001"])
    good = path.read_bytes()
    expected = read_labelled_images(path, **LIMITS).rows
    for place in [*random.randint(0, len(good), 60), *range(len(good) - 20, len(good))]:
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert len(read_labelled_images(path, **LIMITS).rows) <= len(expected)
        except SourceError:
            continue
    for length in (0, 3, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(SourceError, match=r"a\.parquet: truncated or damaged"):
            read_labelled_images(path, **LIMITS)


@pytest.mark.parametrize(
    ("split", "rows", "what"),
    [
        ("valid", [(GREY, None, 0)], "contains no train-.* and valid-"),
        ("train", [(GREY, None, 0)], "contains no train-.* and valid-"),
    ],
)
def test_both_splits_are_needed(tmp_path: Path, split: str, rows: list[Row], what: str) -> None:
    write_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet", rows, ["n00000001"])
    with pytest.raises(AffsupError, match=what):
        data_prep.prepare("tiny-imagenet", sources=[tmp_path / "hub"], data_dir=tmp_path / "data")


def test_labels_that_are_no_ids_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet", [(GREY, None, 0)], ["goldfish"])
    with pytest.raises(AffsupError, match="names a label 'goldfish', expected ids such as n02124075"):
        data_prep.prepare("tiny-imagenet", sources=[tmp_path / "hub"], data_dir=tmp_path / "data")


@pytest.mark.parametrize("missing", ["pyarrow", "huggingface_hub"])
def test_what_is_not_installed_is_named_with_the_extra(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    source = hub_folder(tmp_path / "hub", files, named=True) if missing == "pyarrow" else Path("hf://datasets/a/b")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"need.*{missing}.*pip install 'affsup\[hub\]'"):
        data_prep.prepare("tiny-imagenet", sources=[source], data_dir=tmp_path / "data")


# Downloads


def test_an_address_of_the_hub_is_downloaded_and_prepared(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(
        name: str, *, repo_type: str, revision: str | None, local_dir: Path, allow_patterns: list[str]
    ) -> None:
        assert "*.parquet" in allow_patterns
        asked.append((name, repo_type, revision))
        hub_folder(local_dir, files, named=False)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = Path("hf://datasets/zh-plus/tiny-imagenet@5a77092")
    manifest = data_prep.prepare("tiny-imagenet", sources=[source], data_dir=tmp_path).manifest
    assert asked == [("zh-plus/tiny-imagenet", "dataset", "5a77092")]
    assert manifest.image_counts() == {"train": 33, "val": 3, "test": 12}
    assert (tmp_path / ".downloads" / "hub" / "zh-plus--tiny-imagenet" / "data").is_dir()


def test_a_download_that_fails_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("x" * 1000)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(AffsupError, match=r"^hf://datasets/a/b cannot be downloaded \(ConnectionError: x+\.\.\.\)"):
        data_prep.prepare("tiny-imagenet", sources=[Path("hf://datasets/a/b")], data_dir=tmp_path)


@pytest.mark.parametrize("address", ["hf://a/b", "hf://datasets/a", "hf://datasets/../b", "hf://datasets/a/b/c"])
def test_other_addresses_are_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="expected hf://datasets/OWNER/NAME"):
        data_prep.prepare("tiny-imagenet", sources=[Path(address)], data_dir=tmp_path)


# MIT67


def hub_samples(files: dict[str, bytes], names: dict[str, str]) -> dict[str, bytes]:
    """The pictures in `data/data_N/`, by the given or their own file names, and FiftyOne's `samples.json`."""
    samples, found = [], {}
    for number, (path, content) in enumerate(files.items()):
        if path.startswith("Images/"):
            _, label, file = path.split("/")
            filepath = f"data/data_{number % 2}/{names.get(path, file)}"
            found[filepath] = content
            samples.append({"filepath": filepath, "tags": ["train"], "ground_truth": {"label": label}})
    return found | {"samples.json": json.dumps({"samples": samples}).encode()}


@pytest.fixture
def places() -> dict[str, bytes]:
    train = {f"{place}/{place}_{number}.jpg": picture() for number in range(3) for place in ("bar", "bakery")}
    return mit67(train | {"bar/x.jpg": picture((32, 48))}, {"bakery/test.jpg": picture(), "bar/x-1.jpg": picture()})


def test_pictures_of_the_hub_with_the_official_lists_give_the_data_of_the_archive(
    official: OfficialFiles, places: dict[str, bytes], tmp_path: Path
) -> None:
    folder = official.folder(tmp_path, "official", places)
    expected = data_prep.prepare("mit67", sources=[folder], data_dir=tmp_path / "1").manifest
    samples = hub_samples(places, {"Images/bakery/test.jpg": "test-2.jpg"})
    hub = official.folder(tmp_path, "hub", samples)
    lists = official.folder(tmp_path, "lists", {name: places[name] for name in ("TrainImages.txt", "TestImages.txt")})
    found = data_prep.prepare("mit67", sources=[hub, lists], data_dir=tmp_path / "2").manifest
    assert found.digest == expected.digest


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[]", "has no list 'samples'"),
        (b'{"samples": 1}', "has no list 'samples'"),
        (b'{"samples": [1]}', r"samples\[0\] has no 'filepath' and ground_truth.label"),
        (b'{"samples": [{"filepath": "a"}]}', r"samples\[0\] has no 'filepath' and ground_truth.label"),
        (b'{"samples": []}', "8 of 9 images are missing|9 of 9 images are missing"),
    ],
)
def test_wrong_samples_are_named(
    official: OfficialFiles, places: dict[str, bytes], tmp_path: Path, content: bytes, what: str
) -> None:
    folder = official.folder(tmp_path, "hub", hub_samples(places, {}) | places | {"samples.json": content})
    with pytest.raises(AffsupError, match=what):
        data_prep.prepare("mit67", sources=[folder], data_dir=tmp_path / "data")


# COCO's annotations in parquet

NAMES = {
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "rel_categories": [{"id": 1, "name": "on"}, {"id": 2, "name": "near"}],
}
OBJECTS = [  # with ids that begin anew in each image
    {"id": 1, "category_id": 2, "bbox": [1.0, 2.0, 30.0, 20.0], "area": 600.0, "iscrowd": 0, "segmentation": []},
    {"id": 2, "category_id": 1, "bbox": [20.0, 10.0, 20.0, 30.0], "area": 600.0, "iscrowd": 0, "segmentation": []},
]
RELATIONS = [{"id": 1, "subject_id": 2, "object_id": 1, "predicate_id": 2}]


def coco_row(number: int, **changes: object) -> dict[str, object]:
    row = {"image_id": number, "width": 64, "height": 48, "file_name": f"{number}.jpg", "objects": OBJECTS}
    return {"image": {"bytes": picture(), "path": None}, "relations": RELATIONS if number % 2 else []} | row | changes


def coco_parquet(folder: Path, splits: dict[str, list[dict[str, object]]], rows_of_a_group: int = 2) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "categories.json").write_text(json.dumps(NAMES))
    for split, rows in splits.items():
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_of_a_group)
    return folder


def coco_json(folder: Path, splits: dict[str, list[dict[str, object]]]) -> Path:
    """The same as SGG-Benchmark's download script writes it."""
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True)
        content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "rel_annotations": []}
        for row in rows:
            image = {"id": row["image_id"]} | {key: row[key] for key in ("file_name", "width", "height")}
            content["images"].append(image)
            first = 100 * row["image_id"]  # type: ignore[operator]
            for item in row["objects"]:  # type: ignore[attr-defined]
                content["annotations"].append(item | {"id": first + item["id"], "image_id": row["image_id"]})
            for item in row["relations"]:  # type: ignore[attr-defined]
                ends = {key: first + item[key] for key in ("subject_id", "object_id")}
                content["rel_annotations"].append(item | ends | {"image_id": row["image_id"]})
            (folder / split / str(row["file_name"])).write_bytes(row["image"]["bytes"])  # type: ignore[index]
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content | NAMES))
    return folder


SPLITS = {
    "train": [coco_row(number) for number in range(1, 8)],
    "val": [coco_row(number) for number in (10, 11)],
    "test": [coco_row(number) for number in (21, 20, 23)],
}


@pytest.mark.parametrize("rows_of_a_group", [1, 3, 100])
@pytest.mark.parametrize("drop_empty", [False, True])
def test_coco_in_parquet_gives_the_data_of_cocos_json(tmp_path: Path, rows_of_a_group: int, drop_empty: bool) -> None:
    manifests = []
    for layout, source in (
        ("coco-parquet", coco_parquet(tmp_path / "parquet", SPLITS, rows_of_a_group)),
        ("coco-json", coco_json(tmp_path / "json", SPLITS)),
    ):
        dataset = own_data_set(layout, "vg150")
        request = {"sources": [source], "data_dir": tmp_path / f"{layout}-data", "drop_empty": drop_empty}
        manifests.append(data_prep.prepare(dataset, **request).manifest)
    assert manifests[0].digest == manifests[1].digest
    assert manifests[0].image_counts() == ({"train": 4, "val": 1, "test": 2} if drop_empty else
                                           {"train": 7, "val": 2, "test": 3})  # fmt: skip
    assert manifests[0].relations == "annotated"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"file_name": "1.jpg"}, "has several images 'train/1.jpg'"),
        ({"file_name": None}, "a 'file_name' is None, expected text"),
        ({"image": {"bytes": None, "path": "a"}}, "image 2 has no bytes"),
        ({"image_id": None}, r"images\[1\] 'id' is None, expected a whole number"),
        ({"width": -1}, r"images\[1\] is -1 x 48"),
        ({"objects": [OBJECTS[0], OBJECTS[0]]}, "image 2 has two objects with id 1"),
        ({"objects": [OBJECTS[0] | {"category_id": 9}]}, "category_id 9, which is not in the file"),
        ({"relations": [RELATIONS[0] | {"subject_id": 9}]}, "image 2 has a relation with subject_id 9"),
        ({"relations": [RELATIONS[0] | {"predicate_id": 9}]}, "predicate_id 9, which is not in the file"),
    ],
)
def test_wrong_coco_in_parquet_is_named(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    rows = [coco_row(1), coco_row(2, **changes), coco_row(3)]
    source = coco_parquet(tmp_path / "hub", {"train": rows, "test": [coco_row(4)]})
    with pytest.raises(AffsupError, match=what):
        data_prep.prepare(own_data_set("coco-parquet", "mine"), sources=[source], data_dir=tmp_path / "data")


def test_columns_and_splits_that_are_missing_are_named(tmp_path: Path) -> None:
    dataset = own_data_set("coco-parquet", "mine")
    source = coco_parquet(tmp_path / "1", {"train": [coco_row(1)]})
    with pytest.raises(AffsupError, match="has parquet files of train: expected train and test"):
        data_prep.prepare(dataset, sources=[source], data_dir=tmp_path / "data")
    row = {key: value for key, value in coco_row(1).items() if key != "relations"}
    source = coco_parquet(tmp_path / "2", {"train": [row], "test": [coco_row(2)]})
    with pytest.raises(AffsupError, match=r"train-00000-of-00001\.parquet: has no column 'relations'"):
        data_prep.prepare(dataset, sources=[source], data_dir=tmp_path / "data")
    (source / "categories.json").unlink()
    with pytest.raises(AffsupError, match=r"has no categories\.json"):
        data_prep.prepare(dataset, sources=[source], data_dir=tmp_path / "data")


def test_a_column_of_very_many_values_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.coco_parquet._MAX_VALUES", 1000)
    rows = [coco_row(1, objects=[OBJECTS[0] | {"id": number} for number in range(2000)]), coco_row(2)]
    source = coco_parquet(tmp_path / "hub", {"train": rows, "test": [coco_row(4)]})
    with pytest.raises(AffsupError, match="values in a column, expected at most 1,000; refused"):
        data_prep.prepare(own_data_set("coco-parquet", "mine"), sources=[source], data_dir=tmp_path / "data")

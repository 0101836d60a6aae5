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

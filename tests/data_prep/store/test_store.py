from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import data_prep.store.images as images_module
from data_prep.build import build
from data_prep.errors import AffsupError, UsageError
from data_prep.raw import DataSet
from data_prep.store import (
    FileRecord,
    ImageSplit,
    NewImages,
    read_manifest,
    read_split,
    verify,
    write_images,
    write_manifest,
)
from tests.data_prep.conftest import OfficialFiles


def new_splits(block: int, labels: tuple[int, ...] = (0, 1, 2, 0, 1)) -> dict:
    images = np.random.RandomState(1).randint(0, 256, (5, 2, 4, 3)).astype(np.uint8)
    split = {
        "labels": np.array(labels, dtype=np.int64),
        "source_index": np.array([9, 7, 5, 3, 1]),
    }
    return {
        name: NewImages(**split, blocks=[images[i : i + block] for i in range(0, 5, block)])
        for name in ("train", "val", "test")
    }


@pytest.fixture
def prepared(cifar10: DataSet, cifar10_archive: Path, tmp_path: Path) -> Path:
    return build(cifar10, sources=[cifar10_archive], data_dir=tmp_path / "data").folder


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read(folder: Path, split: str = "train") -> ImageSplit:
    return read_split(folder, read_manifest(folder), split)


def record_images(folder: Path) -> None:
    """Make the manifest agree with the bytes of images.h5, so that only what they hold can be wrong."""
    content = (folder / "images.h5").read_bytes()
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"files": {"images.h5": record}}))


def test_a_split_is_written_as_it_was_given(tmp_path: Path) -> None:
    splits = new_splits(block=2)
    write_images(tmp_path, ["a", "b", "c"], [3, 2, 4], splits)
    with h5py.File(tmp_path / "images.h5") as h5:
        np.testing.assert_array_equal(h5["val/images"], np.concatenate(splits["val"].blocks))
        assert list(h5["val/labels"]) == [0, 1, 2, 0, 1]
        assert list(h5["val/source_index"]) == [9, 7, 5, 3, 1]


def test_channel_mean_and_std_are_those_of_the_train_split(tmp_path: Path) -> None:
    splits = new_splits(block=2)
    splits["val"].blocks[0][:] = 0
    content = write_images(tmp_path, ["a", "b", "c"], [3, 2, 4], splits | {"train": new_splits(5)["train"]})
    pixels = new_splits(5)["train"].blocks[0].astype(np.float64) / 255
    np.testing.assert_allclose(content.channel_mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(content.channel_std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_digest_is_of_the_content_not_of_the_blocks_it_came_in(tmp_path: Path) -> None:
    digests = [write_images(tmp_path, ["a", "b", "c"], [3, 2, 4], new_splits(block)).digest for block in (1, 5)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("classes", "labels"), [(["a", "b", "d"], (0, 1, 2, 0, 1)), (["a", "b", "c"], (0, 1, 2, 0, 2))]
)
def test_digest_changes_with_classes_and_labels(tmp_path: Path, classes: list[str], labels: tuple[int, ...]) -> None:
    original = write_images(tmp_path, ["a", "b", "c"], [3, 2, 4], new_splits(2)).digest
    assert write_images(tmp_path, classes, [3, 2, 4], new_splits(2, labels)).digest != original


def test_fewer_images_than_labels_is_an_error(tmp_path: Path) -> None:
    splits = new_splits(2)
    splits["test"].blocks.pop()
    with pytest.raises(ValueError, match="split test: 4 images for 5 labels"):
        write_images(tmp_path, ["a", "b", "c"], [3, 2, 4], splits)


def test_split_table_has_a_row_a_class_and_the_total(prepared: Path) -> None:
    *rows, total = read_manifest(prepared).split_table()
    assert len(rows) == 10
    assert rows[3][0] == "cat"
    assert [sum(row[i] for row in rows) for i in (1, 2, 3)] == list(total[1:]) == [90, 10, 20]
    labels = read(prepared).labels
    assert [row[1] for row in rows] == np.bincount(labels, minlength=10).tolist()


@pytest.mark.parametrize(
    ("folder", "command"),
    [("data/cifar10", "`affsup prepare cifar10`"), ("big/cifar10", "`affsup prepare cifar10 --data big`")],
)
def test_a_data_set_that_is_not_there_names_the_command(
    folder: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for opened in (read_manifest, verify):
        with pytest.raises(AffsupError, match="data set 'cifar10' is not prepared") as error:
            opened(Path(folder))
        assert str(error.value).endswith(command)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"splits": {}}, "splits train, val, test"),
        ({"classes": ["one"]}, "per_class"),
        ({"channel_mean": []}, "channel_mean"),
        ({"channel_std": [0.2, 0.0, 0.2]}, "channel_std"),
        ({"channel_std": [0.2, float("nan"), 0.2]}, "channel_std"),
        ({"digest": ""}, "digest"),
        ({"dataset": "cifar100"}, "is the manifest of data set 'cifar100', expected 'cifar10'"),
    ],
)
def test_a_manifest_of_something_else_is_refused(prepared: Path, changes: dict[str, object], what: str) -> None:
    change_manifest(prepared, **changes)
    with pytest.raises(AffsupError, match=what):
        read_manifest(prepared)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_broken_manifest_is_refused(prepared: Path, content: bytes) -> None:
    (prepared / "manifest.json").write_bytes(content)
    with pytest.raises(AffsupError, match=r"manifest\.json .* to prepare it again"):
        read_manifest(prepared)


def test_an_unknown_split_is_refused(prepared: Path) -> None:
    with pytest.raises(UsageError, match="no split 'dev': known are train, val, test"):
        read(prepared, "dev")


def test_truncated_images_are_damaged(prepared: Path) -> None:
    path = prepared / "images.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AffsupError, match=r"images\.h5 is damaged"):
        read(prepared)


def test_a_file_of_another_shape_is_not_the_prepared_format(prepared: Path) -> None:
    with h5py.File(prepared / "images.h5", "r+") as h5:
        del h5["train/labels"]
        h5["train/labels"] = np.zeros(3)
    with pytest.raises(AffsupError, match=r"'train/labels' is float64 \[3\], expected integers"):
        read(prepared)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train/labels", 0, "other class counts"),
        ("train/labels", -1, "labels outside 0..9"),
        ("train/labels", 99, "labels outside 0..9"),
    ],
)
def test_labels_changed_in_place_are_noticed_without_a_checksum(
    prepared: Path, key: str, value: int, said: str
) -> None:
    with h5py.File(prepared / "images.h5", "r+") as h5:
        h5[key][:] = value
    with pytest.raises(AffsupError, match=said):
        read(prepared)


def test_images_of_another_preparation_are_noticed(
    prepared: Path, cifar10: DataSet, cifar10_archive: Path, tmp_path: Path
) -> None:
    limited = build(cifar10, sources=[cifar10_archive], data_dir=tmp_path / "other", limit=50).folder
    (prepared / "images.h5").write_bytes((limited / "images.h5").read_bytes())
    with pytest.raises(AffsupError, match="has content"):
        read(prepared)


def test_verify_passes_what_was_just_prepared(prepared: Path) -> None:
    assert verify(prepared) == read_manifest(prepared)


def test_verify_sees_one_flipped_bit(prepared: Path) -> None:
    content = bytearray((prepared / "images.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (prepared / "images.h5").write_bytes(content)
    with pytest.raises(AffsupError, match="SHA-256"):
        verify(prepared)


def test_verify_sees_a_truncated_file(prepared: Path) -> None:
    path = prepared / "images.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AffsupError, match="bytes, its manifest says"):
        verify(prepared)


@pytest.mark.parametrize(
    ("key", "index", "value", "what"),
    [
        ("train/labels", 0, 10, "labels outside 0..9"),
        ("train/labels", 0, -1, "labels outside 0..9"),
        ("val/labels", slice(None), 0, "split val has other class counts"),
        ("test/images", 0, 0, "images 0 to 19 of split test are damaged: run `affsup prepare cifar10"),
        ("test/source_index", 0, 19, "the labels of split test are damaged"),
    ],
)
def test_verify_sees_content_that_the_manifest_does_not_describe(
    prepared: Path, key: str, index: int | slice, value: int, what: str
) -> None:
    with h5py.File(prepared / "images.h5", "r+") as h5:
        h5[key][index] = value
    record_images(prepared)
    with pytest.raises(AffsupError, match=what):
        verify(prepared)


def test_verify_sees_a_wrong_image_shape(prepared: Path) -> None:
    change_manifest(prepared, image_shape=[3, 16, 64])
    with pytest.raises(AffsupError, match=r"'train/images' has shape \[90, 32, 32, 3\], expected \[90, 16, 64, 3\]"):
        verify(prepared)


def without_checksums(folder: Path) -> None:
    """Make the manifest one of an older data set, with the bytes of images.h5."""
    change_manifest(folder, checksums=None)
    record_images(folder)


def test_data_sets_without_checksums_are_read_and_verified_by_their_digest(prepared: Path) -> None:
    expected = read(prepared).images
    without_checksums(prepared)
    np.testing.assert_array_equal(read(prepared).images, expected)
    assert verify(prepared).checksums is None
    with h5py.File(prepared / "images.h5", "r+") as h5:
        h5["test/images"][0] = 0
    record_images(prepared)
    with pytest.raises(AffsupError, match="content"):
        verify(prepared)


def test_a_flipped_bit_of_any_block_is_found_when_the_split_is_read(
    tmp_path: Path, cifar10: DataSet, cifar10_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "BLOCK", 40)
    folder = build(cifar10, sources=[cifar10_archive], data_dir=tmp_path / "data").folder
    assert len(read_manifest(folder).checksums["train"].images) == 3  # 90 images
    for index, blocks in ((0, "0 to 39"), (39, "0 to 39"), (40, "40 to 79"), (89, "80 to 89")):
        with h5py.File(folder / "images.h5", "r+") as h5:
            h5["train/images"][index, 3, 5, 1] ^= 4
        with pytest.raises(AffsupError, match=f"images {blocks} of split train are damaged"):
            read(folder)
        read(folder, "val")
        with h5py.File(folder / "images.h5", "r+") as h5:
            h5["train/images"][index, 3, 5, 1] ^= 4
    read(folder)


def virtual_layout(source: Path) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((90,), "i8")
    layout[:] = h5py.VirtualSource(source, "labels", shape=(90,))
    return layout


def external(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("labels", (90,), "i8", external=[(folder / "private", 0, 720)])


def external_link(group: h5py.Group, folder: Path) -> None:
    group["labels"] = h5py.ExternalLink(str(folder / "other.h5"), "labels")


def soft_link(group: h5py.Group, folder: Path) -> None:
    group["labels"] = h5py.SoftLink("/val/labels")


def virtual(group: h5py.Group, folder: Path) -> None:
    group.create_virtual_dataset("labels", virtual_layout(folder / "other.h5"))


def a_group(group: h5py.Group, folder: Path) -> None:
    group.create_group("labels")


def enormous(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("labels", (2**40,), "i8", chunks=(1000,))


def text(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("labels", (90,), "S8")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (external, "stored in another file"),
        (external_link, "is a link"),
        (soft_link, "is a link"),
        (virtual, "stored in another file"),
        (a_group, "is a group"),
        (enormous, "has shape"),
        (text, "expected integers"),
    ],
)
def test_labels_elsewhere_or_of_another_kind_are_refused(
    prepared: Path, tmp_path: Path, make: Callable[[h5py.Group, Path], None], what: str
) -> None:
    (tmp_path / "private").write_bytes(bytes(720))
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["labels"] = np.zeros(90, np.int64)
    with h5py.File(prepared / "images.h5", "r+") as h5:
        del h5["train/labels"]
        make(h5["train"], tmp_path)
    with pytest.raises(AffsupError, match=rf"images\.h5 is damaged \(.*'train/labels'.*{what}"):
        read(prepared)


def test_images_of_one_colour_cannot_be_normalised(cifar10: DataSet, tmp_path: Path, official: OfficialFiles) -> None:
    files = official.cifar10()
    batch = {"data": np.full((20, 3072), 7, np.uint8), "labels": list(range(10)) * 2}
    files |= {name: pickle.dumps(batch, 2) for name in files if name != "batches.meta"}
    folder = official.folder(tmp_path, "cifar-10-batches-py", files)
    with pytest.raises(AffsupError, match="channel 1 has the same value in all training pixels"):
        build(cifar10, sources=[folder], data_dir=tmp_path / "data")

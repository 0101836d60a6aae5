from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import data_prep
from data_prep.errors import AffsupError, SourceError, UsageError
from data_prep.raw import RawImages, RawSplit
from data_prep.sources.open import _FolderFiles
from tests.data_prep.conftest import CIFAR10_NAMES, OfficialFiles


def all_images(images: RawSplit) -> np.ndarray:
    return np.concatenate(list(images.blocks(np.arange(len(images.labels)))))


def read(name: str, files: dict[str, bytes]) -> RawImages:
    return data_prep.get(name).read(files)


def test_every_module_of_sets_is_a_data_set() -> None:
    assert set(data_prep.datasets()) >= {"cifar10", "cifar100", "digits", "tiny-imagenet"}
    assert all(name == dataset.name for name, dataset in data_prep.datasets().items())


def test_listing_the_data_sets_loads_nothing_heavy() -> None:
    heavy = {"numpy", "h5py", "pydantic", "PIL", "sklearn", "torch", "urllib.request", "tarfile"}
    code = f"import sys, data_prep; data_prep.datasets(); sys.exit(str({heavy} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_an_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"no data set 'cifar' \(did you mean 'cifar10'\?\): known are cifar"):
        data_prep.get("cifar")


def test_cifar_rows_become_images_of_the_official_pixels(official: OfficialFiles) -> None:
    data = read("cifar10", official.cifar10())
    assert data.classes == tuple(CIFAR10_NAMES)
    images = all_images(data.train)
    assert images.shape == (100, 32, 32, 3)
    rows, labels = official.cifar_rows("data_batch_2")
    for y, x, channel in [(0, 0, 0), (31, 31, 2), (3, 17, 1)]:
        assert images[25, y, x, channel] == rows[5, channel * 1024 + y * 32 + x]
    assert data.train.labels[20:40].tolist() == labels
    np.testing.assert_array_equal(
        all_images(data.test)[..., 0].reshape(20, -1), official.cifar_rows("test_batch")[0][:, :1024]
    )


def test_cifar100_takes_the_fine_labels(official: OfficialFiles) -> None:
    data = read("cifar100", official.cifar100())
    assert data.classes[42] == "kind 42"
    assert data.train.labels.tolist() == [i % 100 for i in range(200)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"data": None}, "'data' is a NoneType, expected uint8"),
        ({"data": np.zeros((20, 100), np.uint8)}, r"'data' is \[20, 100\], expected uint8 \[n, 3072\]"),
        ({"labels": [10] * 20}, r"integers in 0\.\.9"),
        ({"labels": [True] * 20}, r"integers in 0\.\.9"),
        ({"labels": "airplane"}, r"integers in 0\.\.9"),
        ({"labels": [1] * 19}, "20 images and 19 labels"),
    ],
)
def test_a_cifar_batch_of_wrong_content_is_named(official: OfficialFiles, change: dict, what: str) -> None:
    data, labels = official.cifar_rows("data_batch_3")
    files = official.cifar10() | {"data_batch_3": pickle.dumps({"data": data, "labels": labels} | change, 4)}
    with pytest.raises(SourceError, match=f"data_batch_3: .*{what}"):
        read("cifar10", files)


def test_a_cifar_batch_without_labels_is_named(official: OfficialFiles) -> None:
    data, labels = official.cifar_rows("test_batch")
    files = official.cifar10() | {"test_batch": pickle.dumps({"data": data, "fine_labels": labels}, 4)}
    with pytest.raises(SourceError, match="test_batch: has no 'labels'; found data, fine_labels"):
        read("cifar10", files)


def test_cifar_class_names_must_be_as_many_as_the_classes(official: OfficialFiles) -> None:
    files = official.cifar10() | {"batches.meta": pickle.dumps({"label_names": ["one"]})}
    with pytest.raises(SourceError, match=r"batches\.meta: 'label_names' is not a list of 10 class names"):
        read("cifar10", files)


def unfolding(levels: int, width: int) -> object:
    """A list of `width` references to a list of `width` references, and so on: a few bytes, pickled."""
    value: object = "x"
    for _ in range(levels):
        value = [value] * width
    return value


NESTED = b"\x80\x02}U\x0blabel_names](" + b"]" * 5000 + b"a" * 4999 + b"K\x00" * 9 + b"es."


@pytest.mark.parametrize(
    "meta",
    [
        pickle.dumps({"label_names": unfolding(9, 10)}, 2),
        pickle.dumps({"label_names": ["x" * 101] * 10}, 2),
        NESTED,
    ],
    ids=["unfolding", "long", "nested"],
)
def test_cifar_class_names_must_be_short_texts(official: OfficialFiles, meta: bytes) -> None:
    files = official.cifar10() | {"batches.meta": meta}
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="is not a list of 10 class names of at most 100 characters"):
            read("cifar10", files)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_tiny_imagenet_keeps_the_order_of_wnids_and_of_image_numbers(official: OfficialFiles) -> None:
    data = read("tiny-imagenet", official.tiny_imagenet())
    assert data.classes == ("thing 2, object", "thing 1, object", "thing 3, object")
    assert data.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    levels = [official.tiny_level(label, i) for label in range(3) for i in range(12)]
    images = all_images(data.train)
    assert images.shape == (36, 64, 64, 3)
    np.testing.assert_array_equal(images, np.broadcast_to(np.reshape(levels, (36, 1, 1, 1)), images.shape))


def test_tiny_imagenet_tests_on_the_official_validation_images(official: OfficialFiles) -> None:
    data = read("tiny-imagenet", official.tiny_imagenet())
    assert data.test.labels.tolist() == [2] * 4 + [1] * 4 + [0] * 4
    assert all_images(data.test)[:, 0, 0, 0].tolist() == [202] * 4 + [201] * 4 + [200] * 4


def test_tiny_imagenet_blocks_come_in_the_order_of_the_rows(
    official: OfficialFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.store.BLOCK", 5)
    data = read("tiny-imagenet", official.tiny_imagenet())
    blocks = list(data.train.blocks(np.array([30, 2, 13, 5, 35, 0, 1])))
    assert [block[:, 9, 9, 1].tolist() for block in blocks] == [[126, 2, 61, 5, 131], [0, 1]]


IMAGE = "train/n00000001/images/n00000001_3.JPEG"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({IMAGE: b"not a jpeg"}, f"{IMAGE}: cannot be decoded"),
        ({IMAGE: b""}, f"{IMAGE}: cannot be decoded"),
        ({IMAGE: OfficialFiles().jpeg(9)[:-200]}, f"{IMAGE}: cannot be decoded"),
        ({IMAGE: OfficialFiles().jpeg(9, size=(32, 64))}, f"{IMAGE}: is 32x64, expected 64x64"),
        ({"wnids.txt": b"n00000001\nn00000002"}, "train/n00000003/.*: its class is not in wnids"),
        ({"wnids.txt": b"n00000001\nn00000002\nn00000003\nn00000003"}, "lists a class twice"),
        ({"words.txt": b"n00000001\tx\nn00000002\ty\n"}, "words.txt: has no name for class 'n00000003'"),
        (
            {"wnids.txt": b"n00000001\nn00000002\nn00000003\nn00000004", "words.txt": b"".join(
                b"n0000000%d\tx\n" % i for i in range(1, 5))},
            "class 'n00000004' of wnids.txt has no training images",
        ),
        ({"val/val_annotations.txt": b"val_99.JPEG\tn00000001\n"}, "line 1: names image 'val_99.JPEG', which is miss"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn00000009\n"}, "line 1: names class 'n00000009', not in wnids"),
        ({"val/val_annotations.txt": b"val_0.JPEG"}, "line 1: names class '', not in wnids"),
    ],
)  # fmt: skip
def test_a_wrong_tiny_imagenet_file_is_named(official: OfficialFiles, change: dict[str, bytes], what: str) -> None:
    with pytest.raises(SourceError, match=what):
        all_images(read("tiny-imagenet", official.tiny_imagenet() | change).train)


def test_digits_keep_every_image_once_with_its_row() -> None:
    data = read("digits", {})
    rows = np.concatenate([data.train.source_index, data.test.source_index])
    assert sorted(rows.tolist()) == list(range(1797))
    bunch = load_digits()
    images = np.concatenate([all_images(data.train), all_images(data.test)])
    np.testing.assert_allclose(images[..., 0] / 255, bunch.images[rows] / 16, atol=0.5 / 255)
    np.testing.assert_array_equal(np.concatenate([data.train.labels, data.test.labels]), bunch.target[rows])
    assert len(data.test.labels) == 359


@pytest.mark.parametrize("missing", ["val/images/val_4.JPEG", "train/n00000002/images/n00000002_3.JPEG", "words.txt"])
def test_folder_and_archive_of_tiny_imagenet_with_a_missing_file_are_treated_alike(
    official: OfficialFiles, tmp_path: Path, missing: str
) -> None:
    files = official.tiny_imagenet()
    del files[missing]
    sources = [
        official.zip(tmp_path / "tiny.zip", "tiny-imagenet-200", files),
        official.folder(tmp_path, "tiny-imagenet-200", files),
    ]
    results = []
    for number, source in enumerate(sources):
        try:
            manifest = data_prep.prepare("tiny-imagenet", sources=[source], data_dir=tmp_path / str(number)).manifest
            results.append(manifest.digest)
        except AffsupError as error:
            results.append(str(error).removeprefix(f"{source}: ").partition("; found")[0])
    assert results[0] == results[1]
    if missing.startswith("val"):
        assert re.match(r"val/val_annotations\.txt line \d+: names image 'val_4\.JPEG', which is missing", results[0])


def test_a_folder_of_tiny_imagenet_reads_each_picture_once(
    official: OfficialFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official.folder(tmp_path, "tiny-imagenet-200", official.tiny_imagenet())
    read: list[str] = []
    original = _FolderFiles.__getitem__
    monkeypatch.setattr(_FolderFiles, "__getitem__", lambda self, name: (read.append(name), original(self, name))[1])
    data_prep.prepare("tiny-imagenet", sources=[folder], data_dir=tmp_path / "data")
    pictures = [name for name in read if name.endswith(".JPEG")]
    assert len(pictures) == len(set(pictures)) == 36 + 12

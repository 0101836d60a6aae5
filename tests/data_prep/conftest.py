"""Tiny data sets in the official layouts, and the archives and folders that hold them."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_prep
from data_prep.origin import Origin
from data_prep.raw import DataSet

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class OfficialFiles:
    """Builds official files from arrays that it also shows, as the oracle of what preparing must keep."""

    wnids = ("n00000002", "n00000001", "n00000003")

    def cifar_rows(self, name: str, count: int = 20, classes: int = 10) -> tuple[np.ndarray, list[int]]:
        """The rows [count, 3072] and labels of a batch, told by its name."""
        random = np.random.RandomState(sum(name.encode()))
        return random.randint(0, 256, (count, 3072)).astype(np.uint8), [i % classes for i in range(count)]

    def cifar10(self) -> dict[str, bytes]:
        files = {}
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            data, labels = self.cifar_rows(name)
            batch = {b"batch_label": name.encode(), b"labels": labels, b"data": data, b"filenames": [b"x.png"]}
            files[name] = pickle.dumps(batch, 2)
        files["batches.meta"] = pickle.dumps({"label_names": CIFAR10_NAMES, "num_vis": 3072}, 2)
        return files

    def cifar100(self) -> dict[str, bytes]:
        files = {}
        for name, count in (("train", 200), ("test", 100)):
            data, labels = self.cifar_rows(name, count, classes=100)
            files[name] = pickle.dumps({"data": data, "fine_labels": labels, "coarse_labels": [0] * count}, 4)
        files["meta"] = pickle.dumps({"fine_label_names": [f"kind {i}" for i in range(100)]}, 4)
        return files

    def jpeg(self, level: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
        """An image of one level: JPEG keeps it exactly."""
        out = io.BytesIO()
        Image.new(mode, size, (level,) * 3 if mode == "RGB" else level).save(out, "JPEG", quality=95)
        return out.getvalue()

    def tiny_level(self, label: int, number: int) -> int:
        return 60 * label + number

    def tiny_imagenet(self, train: int = 12, val: int = 4) -> dict[str, bytes]:
        """Classes in an order that is not alphabetical, image numbers that sort otherwise as text, some grey."""
        files = {
            "wnids.txt": "\n".join(self.wnids).encode(),
            "words.txt": "".join(f"{w}\tthing {w[-1]}, object\n" for w in sorted(self.wnids)).encode(),
        }
        annotations = []
        for label, wnid in enumerate(self.wnids):
            files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
            for i in range(train):
                mode = "L" if i == 0 else "RGB"
                files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = self.jpeg(self.tiny_level(label, i), mode=mode)
            for i in range(val):
                name = f"val_{val * label + i}.JPEG"
                files[f"val/images/{name}"] = self.jpeg(200 + label)
                annotations.append(f"{name}\t{wnid}\t0\t0\t9\t9\n")
        files["val/val_annotations.txt"] = "".join(reversed(annotations)).encode()
        files["test/images/test_0.JPEG"] = b"never read"
        return files

    def tar(self, path: Path, root: str, files: dict[str, bytes], mode: str = "w:gz") -> Path:
        with tarfile.open(path, mode) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{root}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    def zip(self, path: Path, root: str, files: dict[str, bytes]) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"{root}/{name}", content)
        return path

    def folder(self, parent: Path, root: str, files: dict[str, bytes]) -> Path:
        for name, content in files.items():
            path = parent / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return parent / root


@pytest.fixture(scope="session")
def official() -> OfficialFiles:
    return OfficialFiles()


@pytest.fixture
def cifar10() -> DataSet:
    return data_prep.get("cifar10")


@pytest.fixture
def cifar10_origin(cifar10: DataSet) -> Origin:
    """The origin, with limits that a small bomb can reach."""
    assert cifar10.origin
    return replace(cifar10.origin, max_bytes=2_000_000, max_members=50)


@pytest.fixture
def cifar10_archive(official: OfficialFiles, tmp_path: Path) -> Path:
    """A `cifar-10-python.tar.gz` of 100 training and 20 test images."""
    return official.tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", official.cifar10())


@pytest.fixture
def tiny_imagenet_archive(official: OfficialFiles, tmp_path: Path) -> Path:
    """A `tiny-imagenet-200.zip` of 3 classes, 36 training and 12 validation images."""
    return official.zip(tmp_path / "tiny-imagenet-200.zip", "tiny-imagenet-200", official.tiny_imagenet())


@pytest.fixture(scope="session")
def real_cifar10_small(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 + 1,000 real CIFAR-10 images in the official folder layout."""
    out = tmp_path_factory.mktemp("cifar10-small")
    command = [sys.executable, str(real_data / "make_cifar.py"), "cifar10-small", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out / "cifar-10-batches-py"

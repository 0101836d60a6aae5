"""Visual Genome's annotations, official layout to prepared form: ours against the loop of scene-graph loaders.

The files are generated in the official layout and size (108,073 images, 1.1 million boxes, 0.6 million relations);
images are not part of it. Each variant runs in a process of its own, so that its peak memory is its own, on one core.

    python benchmarks/vg_annotations.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from data_prep.build_scenes import LeftOutLog, clean_annotations
from data_prep.sets.vg import DATASET
from data_prep.sources.scene_files import SceneFiles
from data_prep.store import Annotations

IMAGES = 108_073
CLASSES, PREDICATES = 150, 50
VARIANTS = ("loop", "affsup")


def generate(folder: Path) -> None:
    """Write `VG-SGG.h5`, `VG-SGG-dicts.json` and `image_data.json` of official size."""
    random = np.random.default_rng(0)
    sizes = random.integers(300, 801, (IMAGES, 2))
    entries = [
        {"image_id": i + 10_000, "width": int(w), "height": int(h), "coco_id": None, "flickr_id": None, "url":
         f"https://cs.stanford.edu/people/rak248/VG_100K_2/{i + 10_000}.jpg"}
        for i, (w, h) in enumerate(sizes)
    ]  # fmt: skip
    (folder / "image_data.json").write_text(json.dumps(entries))
    (folder / "VG-SGG-dicts.json").write_text(
        json.dumps(
            {
                "idx_to_label": {str(i + 1): f"class {i}" for i in range(CLASSES)},
                "idx_to_predicate": {str(i + 1): f"predicate {i}" for i in range(PREDICATES)},
            }
        )
    )
    boxes = random.poisson(10.2, IMAGES)
    relations = random.poisson(5.6, IMAGES) * (boxes > 1)
    first_box, first_relation = np.cumsum(boxes) - boxes, np.cumsum(relations) - relations
    limits = np.repeat(sizes / sizes.max(axis=1, keepdims=True) * 1024, boxes, axis=0)
    extent = random.uniform(0.05, 0.6, limits.shape) * limits
    centre = extent / 2 + random.uniform(0, 1, limits.shape) * (limits - extent)
    image = np.repeat(np.arange(IMAGES), relations)
    subject = random.integers(0, boxes[image])
    other = (subject + random.integers(1, boxes[image])) % boxes[image]
    arrays = {
        "split": np.where(random.uniform(size=IMAGES) < 0.7, 0, 2),
        "boxes_1024": np.concatenate([centre, extent], axis=1),
        "labels": random.integers(1, CLASSES + 1, (len(limits), 1)),
        "img_to_first_box": np.where(boxes, first_box, -1),
        "img_to_last_box": np.where(boxes, first_box + boxes - 1, -1),
        "relationships": first_box[image, None] + np.stack([subject, other], axis=1),
        "predicates": random.integers(1, PREDICATES + 1, (len(image), 1)),
        "img_to_first_rel": np.where(relations, first_relation, -1),
        "img_to_last_rel": np.where(relations, first_relation + relations - 1, -1),
    }
    with h5py.File(folder / "VG-SGG.h5", "w") as h5:
        for name, array in arrays.items():
            h5[name] = array.astype(np.int32)


def affsup(folder: Path) -> list[Annotations]:
    """Convert with `data_prep`."""
    official = DATASET.read(SceneFiles([folder], DATASET.file_pattern, DATASET.source_help))
    return [clean_annotations(part, LeftOutLog()) for part in (official.train, official.test)]


def loop(folder: Path) -> list[Annotations]:
    """Convert image by image, in the manner of the loaders of scene-graph repositories."""
    corrupt = {1592, 1722, 4616, 4617}
    images = [e for e in json.loads((folder / "image_data.json").read_text()) if e["image_id"] not in corrupt]
    with h5py.File(folder / "VG-SGG.h5", "r") as h5:
        held = {key: h5[key][:] for key in h5}
    parts = []
    for wanted in (0, 2):
        names, ids, sizes, boxes, labels, relations, predicates = [], [], [], [], [], [], []
        for i in np.flatnonzero(held["split"] == wanted):
            width, height = images[i]["width"], images[i]["height"]
            first, last = held["img_to_first_box"][i], held["img_to_last_box"][i]
            inside = held["boxes_1024"][first : last + 1].astype(np.float64) if first >= 0 else np.zeros((0, 4))
            inside = inside * max(width, height) / 1024
            corners = np.concatenate([inside[:, :2] - inside[:, 2:] / 2, inside[:, :2] + inside[:, 2:] / 2], axis=1)
            corners[:, 0::2] = np.clip(corners[:, 0::2], 0, width)
            corners[:, 1::2] = np.clip(corners[:, 1::2], 0, height)
            boxes.append(corners.astype(np.float32))
            labels.append(held["labels"][first : last + 1, 0] - 1 if first >= 0 else np.zeros(0, int))
            start, end = held["img_to_first_rel"][i], held["img_to_last_rel"][i]
            pairs = held["relationships"][start : end + 1] - first if start >= 0 else np.zeros((0, 2), int)
            relations.append(pairs)
            predicates.append(held["predicates"][start : end + 1, 0] - 1 if start >= 0 else np.zeros(0, int))
            names.append(f"{images[i]['image_id']}.jpg")
            ids.append(images[i]["image_id"])
            sizes.append((width, height))
        count = sum(map(len, labels))
        parts.append(
            Annotations(
                names=names,
                ids=np.array(ids),
                sizes=np.array(sizes, dtype=np.int32),
                first_object=np.cumsum([0, *map(len, labels)]),
                boxes=np.concatenate(boxes),
                labels=np.concatenate(labels).astype(np.int64),
                difficult=np.zeros(count, dtype=bool),
                crowd=np.zeros(count, dtype=bool),
                first_relation=np.cumsum([0, *map(len, relations)]),
                relations=np.concatenate(relations).astype(np.int64),
                predicates=np.concatenate(predicates).astype(np.int64),
            )
        )
    return parts


def convert(variant: str, folder: Path) -> None:
    """Convert, store, and print seconds, peak memory and what came out."""
    start = time.perf_counter()
    parts = {"affsup": affsup, "loop": loop}[variant](folder)
    with h5py.File(folder / f"{variant}.h5", "w") as h5:
        for name, part in zip(("train", "test"), parts, strict=True):
            part.store(h5.create_group(name))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def same(folder: Path) -> bool:
    """Whether both variants stored the same annotations, boxes to a rounding of float32."""
    with h5py.File(folder / "loop.h5") as one, h5py.File(folder / "affsup.h5") as other:
        return all(
            np.allclose(one[part][key], other[part][key], atol=1e-3)
            if key == "boxes"
            else np.array_equal(one[part][key], other[part][key])
            for part in one
            for key in one[part]
        )


def main() -> None:
    """Compare, or do one step of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", choices=("generate", *VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "generate":
        generate(arguments.folder)
    elif arguments.step:
        convert(arguments.step, arguments.folder)
    else:
        compare(arguments.rounds)


def compare(rounds: int) -> None:
    """Run the variants in turn and keep the result. This process stays small: a child begins with its peak memory."""

    def run(step: str, folder: Path) -> str:
        command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
        one_core = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_core).stdout

    measured: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run("generate", folder)
        for _ in range(rounds):
            for variant in VARIANTS:
                measured[variant].append(json.loads(run(variant, folder)))
        if not same(folder):
            raise SystemExit("the variants do not agree")
    import torch  # as late as this for the same reason
    from record import record

    torch.set_num_threads(1)
    ratios = [loop["seconds"] / ours["seconds"] for loop, ours in zip(*measured.values(), strict=True)]
    rows = [
        {
            "variant": variant,
            "images": IMAGES,
            "seconds": round(statistics.median(each["seconds"] for each in results), 2),
            "peak_mb": round(max(each["peak_mb"] for each in results)),
            "times_faster_than_loop": round(statistics.median(ratios), 2) if variant == "affsup" else 1,
            "rounds": rounds,
        }
        for variant, results in measured.items()
    ]
    record("vg_annotations", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()

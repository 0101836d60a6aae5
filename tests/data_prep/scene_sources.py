"""Tiny data sets of scenes in the official layouts, from scenes given as plain values."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def picture(
    size: tuple[int, int] = (64, 48), mode: str = "RGB", orientation: int | None = None, kind: str = "JPEG"
) -> bytes:
    """An image that is darker on its left half, so that it can be told which way it is turned."""
    width, height = size
    levels = np.full((height, width), 200, np.uint8)
    levels[:, : width // 2] = 20
    image = Image.fromarray(levels).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


@dataclass
class Scene:
    """One image: objects are (class, x1, y1, x2, y2, ...) as the layout has them; no picture if None."""

    name: str
    objects: Sequence[tuple] = ()
    size: tuple[int, int] = (64, 48)
    picture: bytes | None = field(default_factory=picture)


def voc(train: Sequence[Scene], test: Sequence[Scene]) -> dict[str, bytes]:
    """Objects are (class, xmin, ymin, xmax, ymax, difficult). Keys are paths below VOC2007."""
    files = {}
    for part, scenes in (("trainval", train), ("test", test)):
        files[f"ImageSets/Main/{part}.txt"] = "".join(f"{scene.name}\n" for scene in scenes).encode()
        for scene in scenes:
            objects = "".join(
                f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
                f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for name, x1, y1, x2, y2, difficult in scene.objects
            )
            size = f"<size><width>{scene.size[0]}</width><height>{scene.size[1]}</height><depth>3</depth></size>"
            files[f"Annotations/{scene.name}.xml"] = f"<annotation>{size}{objects}</annotation>".encode()
            if scene.picture is not None:
                files[f"JPEGImages/{scene.name}.jpg"] = scene.picture
    return files


COCO_CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def coco(scenes: Sequence[Scene], test: Sequence[int]) -> dict:
    """Objects are (category id, x, y, w, h, iscrowd); the scenes' names are numbers. Content of val2014's file."""
    return {
        "images": [
            {"id": int(s.name), "file_name": coco_name(s.name), "width": s.size[0], "height": s.size[1]} for s in scenes
        ],
        "annotations": [
            {"id": 1, "image_id": int(s.name), "category_id": category, "bbox": box, "iscrowd": crowd}
            for s in scenes
            for category, *box, crowd in s.objects
        ],
        "categories": copy.deepcopy(COCO_CATEGORIES),
    } | {"test": list(test)}


def coco_name(number: str) -> str:
    return f"COCO_val2014_{int(number):012d}.jpg"


def write_coco(folder: Path, content: dict, scenes: Sequence[Scene]) -> Path:
    """A folder of COCO's files; `test` of the content becomes val2017's file."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    official = {key: value for key, value in content.items() if key != "test"}
    (folder / "annotations" / "instances_val2014.json").write_text(json.dumps(official))
    test = {"images": [{"id": number} for number in content["test"]]}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(test))
    for scene in scenes:
        if scene.picture is not None:
            (folder / "val2014" / coco_name(scene.name)).write_bytes(scene.picture)
    return folder


def mit67(train: Mapping[str, bytes | None], test: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Pictures by `category/file`, none there if None. Keys are paths as in one folder that holds all."""
    files = {
        f"{part}Images.txt": "\n".join(pictures).encode()  # the official lists end without a line end
        for part, pictures in (("Train", train), ("Test", test))
    }
    pictures = {**train, **test}
    return files | {f"Images/{name}": picture for name, picture in pictures.items() if picture is not None}


@dataclass
class VisualGenome:
    """Visual Genome's files: scenes whose objects are (label from 1, cx, cy, w, h at 1,024) and their relations.

    `relations[i]` are (subject, object, predicate from 1) of scene i; `split[i]` is 0 or 2.
    """

    scenes: list[Scene]
    relations: list[list[tuple[int, int, int]]]
    split: list[int]

    def arrays(self) -> dict[str, np.ndarray]:
        boxes, labels, pairs, predicates = [], [], [], []
        first_box, last_box, first_rel, last_rel = [], [], [], []
        for scene, relations in zip(self.scenes, self.relations, strict=True):
            start = len(boxes)
            for label, *box in scene.objects:
                boxes.append(box)
                labels.append([label])
            first_box.append(start if scene.objects else -1)
            last_box.append(len(boxes) - 1 if scene.objects else -1)
            first_rel.append(len(pairs) if relations else -1)
            for subject, other, predicate in relations:
                pairs.append([start + subject, start + other])
                predicates.append([predicate])
            last_rel.append(len(pairs) - 1 if relations else -1)
        return {
            "split": np.array(self.split, np.int32),
            "boxes_1024": np.array(boxes, np.int32).reshape(-1, 4),
            "boxes_512": np.array(boxes, np.int32).reshape(-1, 4) // 2,
            "labels": np.array(labels, np.int32).reshape(-1, 1),
            "img_to_first_box": np.array(first_box, np.int32),
            "img_to_last_box": np.array(last_box, np.int32),
            "relationships": np.array(pairs, np.int32).reshape(-1, 2),
            "predicates": np.array(predicates, np.int32).reshape(-1, 1),
            "img_to_first_rel": np.array(first_rel, np.int32),
            "img_to_last_rel": np.array(last_rel, np.int32),
        }

    def write(self, folder: Path, suffix: str = "", arrays: dict[str, np.ndarray] | None = None) -> Path:
        """A folder of the files, its images in VG_100K and VG_100K_2 by turns."""
        folder.mkdir(parents=True)
        with h5py.File(folder / f"VG-SGG{suffix}.h5", "w") as h5:
            for key, array in (self.arrays() if arrays is None else arrays).items():
                h5[key] = array
        vocabulary = {
            "idx_to_label": {"2": "leg", "1": "chair", "3": "cat"},
            "idx_to_predicate": {"1": "of", "2": "on"},
        }
        (folder / f"VG-SGG-dicts{suffix}.json").write_text(json.dumps(vocabulary))
        entries = [{"image_id": int(s.name), "width": s.size[0], "height": s.size[1]} for s in self.scenes]
        corrupt = [{"image_id": number, "width": 5, "height": 5} for number in (1592, 1722, 4616, 4617)]
        (folder / "image_data.json").write_text(json.dumps([*corrupt[:2], *entries, *corrupt[2:]]))
        for number, scene in enumerate(self.scenes):
            part = folder / ("VG_100K", "VG_100K_2")[number % 2]
            part.mkdir(exist_ok=True)
            if scene.picture is not None:
                (part / f"{scene.name}.jpg").write_bytes(scene.picture)
        return folder

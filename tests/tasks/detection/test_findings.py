from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from affsup_cli.tasks.detection.findings import RelationshipProposals, write_detections

FOUND = [
    {"image_id": 7, "category_id": 18, "bbox": [200.0, 0.1, 1e-7, 40.30000114440918], "score": 0.30000001192092896},
    {"image_id": 2**40, "category_id": 1, "bbox": [0.0, -0.5, 3e20, 40.0], "score": 1e-17},
    {"image_id": 9, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 1.0},
]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_detections_are_written_as_json_has_them_one_a_line(tmp_path: Path, count: int) -> None:
    path = tmp_path / "detections.json"
    write_detections(path, iter(FOUND[:count]))
    assert json.loads(path.read_text()) == FOUND[:count]
    lines = path.read_text().splitlines()
    assert lines == (
        ["[", *json.dumps(FOUND[:count])[1:-1].replace("}, {", "},\n{").split("\n"), "]"] if count else ["[]"]
    )


def test_pycocotools_reads_detections(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    write_detections(path, FOUND)
    images = [{"id": detection["image_id"]} for detection in FOUND]
    truth = COCO()
    truth.dataset = {"info": {}, "images": images, "categories": [{"id": 1}, {"id": 18}, {"id": 90}], "annotations": []}
    truth.createIndex()
    read = truth.loadRes(str(path)).loadAnns([1, 2, 3])
    assert [{key: found[key] for key in FOUND[0]} for found in read] == FOUND


def test_pairs_are_written_as_hdf5_and_for_sgbench(tmp_path: Path) -> None:
    boxes = torch.arange(20, dtype=torch.float32).view(5, 4)
    proposals, other = RelationshipProposals(), RelationshipProposals()
    proposals.add(7, boxes, torch.tensor([3, 1, 4, 1, 5]), np.array([[4, 1], [1, 2]]), np.float32([0.5, 0.25]))
    other.add(8, boxes, torch.zeros(5, dtype=torch.int64), np.zeros((0, 2), np.int64), np.float32([]))
    proposals.merge(other)
    proposals.write(tmp_path / "pairs.h5")
    with h5py.File(tmp_path / "pairs.h5") as file:
        assert file["image_id"][:].tolist() == [7, 7]
        assert file["subject"][:].tolist() == boxes[[4, 1]].tolist()
        assert file["object"][:].tolist() == boxes[[1, 2]].tolist()
        assert file["weight"][:].tolist() == [0.5, 0.25]
    proposals.write_scene_graphs(tmp_path / "graphs.json")
    assert json.loads((tmp_path / "graphs.json").read_text()) == {
        "version": 1,
        "images": [
            {
                "id": "7",
                "bboxes": boxes[[1, 2, 4]].tolist(),
                "categories": [1, 4, 5],
                "triplets": [[2, 0, 0], [0, 1, 0]],
            },
            {"id": "8", "bboxes": [], "categories": [], "triplets": []},
        ],
    }

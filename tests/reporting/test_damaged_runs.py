"""A run with damaged or hostile files is named, and never blocks the report of the others."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from affsup_cli.reporting.report import build_report, write_index
from affsup_cli.runs.examples import write_examples
from affsup_cli.runs.folder import MAX_EPOCHS, RunFolder
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_examples import CLASSES, make_example
from tests.reporting.fake_runs import BASE, RunMaker, blobs, decay

CURVES = {**BASE, "train.test_curve": True, "train.epochs": 4}


def array_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def change_record(**fields: object) -> Callable[[RunFolder], None]:
    def damage(run: RunFolder) -> None:
        records = [{**record, **fields} for record in run.metrics()]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    return damage


def features_that_declare_more_than_they_hold(run: RunFolder) -> None:
    header = array_bytes(np.zeros((1, 2), np.float32)).replace(b"(1, 2)", b"(9000000000, 2)")
    with zipfile.ZipFile(run.features, "w") as file:
        file.writestr("features.npy", header)
        file.writestr("labels.npy", array_bytes(np.zeros(1, np.int64)))


def features_with_a_flipped_byte(run: RunFolder) -> None:
    content = bytearray(run.features.read_bytes())
    content[len(content) // 2] ^= 255
    run.features.write_bytes(content)


def features_in_objects(run: RunFolder) -> None:
    np.savez(run.features, features=np.array([{}], dtype=object), labels=np.zeros(1))


DAMAGES: dict[str, Callable[[RunFolder], None]] = {
    "an integer that no float holds": change_record(test_mass=10**400, val_accuracy=10**400),
    "text as a number": change_record(test_mass="0.5", test_accuracy="high"),
    "a list as a number": change_record(test_mass=[1], test_accuracy=None),
    "no JSON": lambda run: (run.path / "metrics.jsonl").write_text("{" * 5000 + "\n") and None,
    "no metrics": lambda run: (run.path / "metrics.jsonl").unlink(),
    "metrics as a folder": lambda run: (
        (run.path / "metrics.jsonl").unlink(),
        (run.path / "metrics.jsonl").mkdir(),
        None,
    )[-1],
    "features that declare more than they hold": features_that_declare_more_than_they_hold,
    "features with a flipped byte": features_with_a_flipped_byte,
    "features in objects": features_in_objects,
    "features cut short": lambda run: run.features.write_bytes(run.features.read_bytes()[:100]) and None,
    "a result of another kind": lambda run: (run.path / "result.json").write_text("[]") and None,
    "an environment of text": lambda run: (run.path / "environment.json").write_text('"x"') and None,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_does_not_block_the_reports_of_the_others(
    make: RunMaker, tmp_path: Path, damage: Callable[[RunFolder], None]
) -> None:
    for seed in range(2):
        make.train(CURVES, 0.9, seed, curve=decay(4, 0.9, 0.3), features=blobs(40, 4), name=f"run{seed}")
    damage(RunFolder(make.root / "run1"))
    index = RunIndex(make.root)
    reports = [build_report(name, index, tmp_path) for name in ("table3", "figure5", "figure6")]
    page = write_index(reports, index, tmp_path).read_text(encoding="utf-8")
    assert all(any(run.folder.name == "run0" for run in report.content.used) for report in reports)
    assert "run0" in page
    notes = [note for report in reports for note in report.notes]
    assert max(map(len, [*notes, *index.warnings])) < 700


def test_an_image_without_pixels_or_a_box_without_numbers_is_left_out(make: RunMaker, tmp_path: Path) -> None:
    for name, change in (("empty", {"size": (0, 10)}), ("whole", {})):
        run = make.finish({"data.name": "voc07"}, {"test_map_all": 0.5}, recipe_name="relnet", name=name)
        write_examples(run.examples, CLASSES, [make_example(number, [0, 1, 1], **change) for number in range(3)])
    report = build_report("figure1", RunIndex(make.root), tmp_path)
    assert [run.folder.name for run in report.content.used] == ["whole"]
    assert any("an image without pixels" in note and "empty" in note for note in report.notes)


def test_of_a_very_long_run_evenly_spaced_epochs_are_read(make: RunMaker, tmp_path: Path) -> None:
    epochs = 3 * MAX_EPOCHS
    run = make.train({**CURVES, "train.epochs": epochs}, 0.9)
    record = '{{"epoch": {0}, "val_accuracy": 0.5, "test_accuracy": 0.5, "test_mass": {1}}}\n'
    lines = (record.format(epoch, epoch / epochs) for epoch in range(1, epochs + 1))
    (run.path / "metrics.jsonl").write_text("".join(lines))
    history = run.history()
    numbers = [line["epoch"] for line in history.records]
    assert history.epochs == epochs
    assert len(numbers) == MAX_EPOCHS
    assert (numbers[0], numbers[-1]) == (1, epochs)
    assert set(np.diff(numbers)) <= {2, 3, 4}
    report = build_report("figure5", RunIndex(make.root), tmp_path)
    assert f"run001 has {epochs:,} epochs, of which {MAX_EPOCHS:,} are read: evenly spaced ones" in report.notes
    assert "1.000" in report.content.tables[0].rows[0][2]
    assert len((tmp_path / "figure5.csv").read_text().splitlines()) == 1 + 2 * MAX_EPOCHS  # in both panels

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "explore_runs.ipynb"


def test_the_cells_of_the_notebook_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["runs"]["run"].tolist() == ["explore"]
    assert names["runs"]["finished"].all()
    assert names["curves"]["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert names["accuracy"] > 0.8
    assert math.isclose(names["runs"]["val_accuracy"][0], names["curves"]["val_accuracy"].max())
    assert len(names["table"]) >= 1


def test_the_notebook_holds_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert notebook["nbformat"] == 4

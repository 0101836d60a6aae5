"""What the README shows must run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from affsup_cli.affinity import BatchAffinityLoss
from affsup_cli.app import app, main
from data_prep.format import read_manifest, read_split

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_loss_in_a_plain_loop_draws_classes_together(digits: Path) -> None:
    lines, _ = blocks("python")
    stored = read_split(digits / "digits", read_manifest(digits / "digits"), "train")
    images = torch.from_numpy(stored.images[:512]).float().flatten(1) / 255
    labels = torch.from_numpy(stored.labels[:512])
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    head = nn.Linear(16, 10)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1)
    loader = [(images[i : i + 64], labels[i : i + 64]) for i in range(0, 512, 64)] * 10

    def mass() -> float:
        graph = BatchAffinityLoss()
        with torch.no_grad():
            return graph.loss.mass(*graph.graph(backbone(images), labels)).item()

    before = mass()
    exec(lines, {"backbone": backbone, "head": head, "optimizer": optimizer, "loader": loader})
    assert mass() > before + 0.2


def test_the_loss_on_attention_logits_asks_for_pairs_of_different_classes() -> None:
    _, lines = blocks("python")
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 9, 10]]])
    places = {"boxes": boxes, "gt_boxes": boxes[:, :2], "gt_labels": torch.tensor([[3, 5]])}
    logits = torch.zeros(1, 3, 3, requires_grad=True)
    exec(lines, names := {**places, "logits": logits, "detection_loss": torch.zeros(())})
    names["loss"].backward()
    assert logits.grad is not None
    raised = logits.grad[0] < 0
    assert raised.tolist() == [[False, True, False], [True, False, True], [False, True, False]]


COMMANDS = [
    line.partition("#")[0].strip() for block in blocks("") for line in block.splitlines() if line.startswith("affsup ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_what_there_is(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run each as far as it goes without data: to the plan of a sweep, or to the data set that is not prepared."""
    words = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    asks_only = {"sweep": [] if "--status" in words else ["--dry-run"], "bench": ["table9"]}
    monkeypatch.setattr(sys, "argv", words + asks_only.get(words[1], []))
    if words[1] == "prepare":
        monkeypatch.setattr(sys, "argv", [*words[:3], "--check"])
    with pytest.raises(SystemExit) as left:
        main()
    error = capsys.readouterr().err
    if "--gpus" in words and torch.cuda.device_count() < int(words[words.index("--gpus") + 1]):
        assert "--gpus 2: this machine has" in error
        assert left.value.code == 2
    elif words[1] == "bench":  # in earnest it takes minutes
        assert "no table or figure 'table9'" in error
        assert left.value.code == 2
    elif "RUN" in words:
        assert "RUN is not a run folder" in error
        assert left.value.code == 2
    elif words[1] in ("prepare", "train"):
        assert "is not prepared" in error
        assert left.value.code == 1
    else:
        assert left.value.code in (None, 0), error


def test_there_are_commands_to_check() -> None:
    everything = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert everything - {command.split()[1] for command in COMMANDS} <= {"show", "demo"}

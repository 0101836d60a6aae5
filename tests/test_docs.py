"""What README.md and the documentation show must be true: commands, Python, TOML, links, messages, and the site."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer
import yaml
from torch import nn

import affsup_cli
import data_prep
from affsup_cli import affinity, recipe
from affsup_cli.affinity import BatchAffinityLoss
from affsup_cli.app import app, main
from affsup_cli.recipe import load_recipe
from affsup_cli.reporting.select.experiments import experiments
from affsup_cli.reporting.select.spec import load_spec
from data_prep.layouts import LAYOUT_NAMES
from data_prep.store import read_manifest, read_split
from tests.data_prep.scene_sources import Scene, coco, coco_name, picture, voc
from tests.small_scenes import SMALL_RELNET

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = typer.main.get_command(app)
SUBCOMMANDS: dict[str, Any] = COMMAND.commands  # type: ignore[attr-defined]


class Block(NamedTuple):
    """A fenced block of a page, its language and its title."""

    page: str
    language: str
    title: str
    text: str


@cache
def blocks() -> list[Block]:
    fence = re.compile(r'^```(\w*)(?: title="(.+?)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)
    return [
        Block(page.relative_to(ROOT).as_posix(), *(group or "" for group in found.groups()))
        for page in PAGES
        for found in fence.finditer(page.read_text(encoding="utf-8"))
    ]


def titled(folder: str) -> dict[str, str]:
    """The files of the tutorials that a reader saves in a folder of the checkout: text by name without its suffix."""
    return {Path(block.title).stem: block.text for block in blocks() if block.title.startswith(folder)}


def own_sets() -> set[str]:
    """The names of the reader's own data sets in the tutorials."""
    lines = [line for block in blocks() for line in block.text.splitlines()]
    words = [line.split() for line in lines if line.startswith("affsup prepare")]
    named = {line[line.index("--name") + 1] for line in words if "--name" in line}
    return named | {Path(line[2]).stem for line in words if line[2].endswith(".py")}


# Commands


def shown_commands() -> list[str]:
    """Every call of affsup in a block without a language, and every example of --help."""
    pages = [line for block in blocks() if not block.language for line in block.text.splitlines()]
    examples = [line for command in SUBCOMMANDS.values() for line in command.help.splitlines()]
    lines = [line.partition("#")[0].strip() for line in (*pages, *examples)]
    calls = [line for line in lines if line.startswith(("affsup ", "torchrun "))]
    return list(
        dict.fromkeys(f"affsup {call.partition('-m affsup_cli ')[2]}" if "torchrun" in call else call for call in calls)
    )


@pytest.fixture(scope="module")
def recipes_with_tutorials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes folder of a reader who has saved the tutorials' tables."""
    folder = tmp_path_factory.mktemp("checkout") / "recipes"
    shutil.copytree(recipe.recipes_folder(), folder)
    for name, text in titled("recipes/tables/").items():
        (folder / "tables" / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def tutorial_folder(recipes_with_tutorials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in the folder of a reader who has saved the tutorials' files, with nothing prepared and no run."""
    monkeypatch.setattr("affsup_cli.recipe.load.recipes_folder", lambda: recipes_with_tutorials)
    monkeypatch.setattr("affsup_cli.reporting.select.spec.recipes_folder", lambda: recipes_with_tutorials)
    monkeypatch.chdir(tmp_path)
    for block in blocks():
        if block.language in ("toml", "python") and block.title and "/" not in block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
    return tmp_path


def call(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Call affsup in this process; gives exit code and standard error."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_is_understood_and_names_what_there_is(
    command: str, tutorial_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Call each so that it goes as far as it can without data and without work."""
    words = shlex.split(command)
    SUBCOMMANDS[words[1]].make_context(words[1], words[2:])  # refuses unknown options and wrong values
    for option, at in [(word, place) for place, word in enumerate(words) if word == "--dataset"]:
        assert words[at + 1] in {*data_prep.datasets(), *own_sets(), "mine"}, option
    match words[1]:
        case "demo":  # takes no argument; it is run by hand
            pass
        case "prepare":
            layout, own = words[2] in LAYOUT_NAMES or words[2].endswith(".py"), words[2] in own_sets()
            offline = ["no-folder" if word.startswith("hf://") else word for word in words]
            code, error = call(offline if layout else [*words[:3], "--check"], monkeypatch, capsys)
            no_source = "expected a folder with|is not a file or folder"
            said = no_source if layout else "no data set" if own else "is not prepared"
            assert re.search(said, error), error
            assert code == (2 if own or layout else 1)
        case "train" if "--pretrained" in words:
            code, error = call(words, monkeypatch, capsys)
            assert "is not a run folder" in error
        case "train":  # every other field is checked before this one is refused
            code, error = call([*words, "--set", "train.epochs=0"], monkeypatch, capsys)
            assert re.fullmatch(r"affsup: recipe \S+: train\.epochs = 0: [^\n]+\n", error), error
        case "sweep" if not {"--status", "--cancel"} & set(words):
            if importlib.util.find_spec("submitit") is None and "slurm" in words:
                pytest.skip("submitit is not installed")
            code, error = call([word for word in words if word != "--dry-run"] + ["--dry-run"], monkeypatch, capsys)
            assert code == 0, error
        case "search":  # as far as the check of the recipe
            if importlib.util.find_spec("optuna") is None:
                pytest.skip("optuna is not installed")
            code, error = call([*words, "--set", "train.epochs=0"], monkeypatch, capsys)
            assert re.fullmatch(r"affsup: recipe \S+: train\.epochs = 0: [^\n]+\n", error), error
        case "check" | "validate" if len(words) > 2:
            code, error = call(words, monkeypatch, capsys)
            assert re.search(r"is neither a run folder|damaged|invalid", error), error
        case "bench":  # in earnest it takes minutes
            for name in (word for word in words[2:] if re.fullmatch(r"(table|figure)\d+", word)):
                load_spec(name)
        case "sweep":
            code, error = call(words, monkeypatch, capsys)
            assert code == 0 or "Slurm not found" in error
        case "evaluate" | "predict" | "export" | "compare":
            code, error = call(words, monkeypatch, capsys)
            assert re.search(r"is not a run folder|no file|no picture", error), error
            assert code == 2
        case "show" if words[2] in (*data_prep.datasets(), *own_sets(), "RUN"):
            code, error = call(words, monkeypatch, capsys)
            assert ("is not prepared" if words[2] in data_prep.datasets() else "nothing is called") in error
        case _:
            code, error = call(words, monkeypatch, capsys)
            assert code == 0, error


def test_every_subcommand_is_shown() -> None:
    assert {command.split()[1] for command in shown_commands()} == set(SUBCOMMANDS)


@pytest.mark.parametrize("name", ["", *SUBCOMMANDS])
def test_help_fits_eighty_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["affsup", *filter(None, [name]), "--help"])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("affsup ") for line in lines)
    assert not [line for line in lines if len(line) > 80]


# Python


def stand_ins(digits: Path) -> dict[str, Any]:
    """What the reader's own names stand for, in every Python block."""
    stored = read_split(digits / "digits", read_manifest(digits / "digits"), "train")
    images = torch.from_numpy(stored.images[:512]).float().flatten(1) / 255
    labels = torch.from_numpy(stored.labels[:512])
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    head = nn.Linear(16, 10)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 9, 10]]])
    return {
        "images": images,
        "labels": labels,
        "backbone": backbone,
        "head": head,
        "optimizer": torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1),
        "loader": [(images[i : i + 64], labels[i : i + 64]) for i in range(0, 512, 64)] * 10,
        "boxes": boxes,
        "gt_boxes": boxes[:, :2],
        "gt_labels": torch.tensor([[3, 5]]),
        "gt_pairs": torch.tensor([[[0, 1]]]),
        "logits": torch.zeros(1, 3, 3, requires_grad=True),
        "detection_loss": torch.zeros(()),
        "embeddings": backbone(images).detach(),
        "classes": labels,
    }


PYTHON = [block for block in blocks() if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.text.splitlines()[0][:40]}")
def test_every_python_block_runs(block: Block, digits: Path) -> None:
    exec(compile(block.text, block.title or block.page, "exec"), stand_ins(digits) | {"__name__": "shown"})


def python_block(page: str, part: str) -> str:
    (text,) = [block.text for block in PYTHON if block.page == page and part in block.text]
    return text


@pytest.mark.parametrize("page", ["README.md", "docs/tutorials/loss.md"])
def test_the_loss_in_a_plain_loop_draws_classes_together(page: str, digits: Path) -> None:
    names = stand_ins(digits)

    def mass() -> float:
        graph = BatchAffinityLoss()
        with torch.no_grad():
            return graph.loss.mass(*graph.graph(names["backbone"](names["images"]), names["labels"])).item()

    before = mass()
    exec(python_block(page, "optimizer.step()"), names)
    assert mass() > before + 0.2


def test_the_loss_on_attention_logits_asks_for_pairs_of_different_classes(digits: Path) -> None:
    exec(python_block("docs/tutorials/loss.md", "match_proposals"), names := stand_ins(digits))
    names["loss"].backward()
    assert names["logits"].grad is not None
    raised = names["logits"].grad[0] < 0
    assert raised.tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def write_own_files(folder: Path) -> None:
    """The files that the tutorial's commands name: photographs, annotated scenes, and arrays."""
    files = {f"photos/{name}/{number}.jpg": picture() for name in ("daisy", "rose") for number in range(6)}
    scenes = [Scene(f"{n:06d}", [("cat", 1, 1, 30, 30, 0), ("dog", 20, 10, 60, 40, 0)]) for n in range(1, 6)]
    files |= {f"VOCdevkit/VOC2007/{name}": content for name, content in voc(scenes[:3], scenes[3:]).items()}
    for split, part in (("train", scenes[:3]), ("val", scenes[3:4]), ("test", scenes[4:])):
        boxes = [Scene(scene.name, [(18, 1, 1, 30, 30, 0), (1, 20, 10, 40, 30, 0)]) for scene in part]
        content = {key: value for key, value in coco(boxes, []).items() if key != "test"}
        files[f"street/{split}.json"] = json.dumps(content).encode()
        files |= {f"street/images/{coco_name(scene.name)}": scene.picture or b"" for scene in part}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "letters").mkdir()
    random = np.random.default_rng(0)
    np.save(folder / "letters" / "images.npy", random.integers(0, 256, (20, 28, 28), dtype=np.uint8))
    np.save(folder / "letters" / "labels.npy", np.arange(20) % 2)


def test_the_commands_of_the_data_tutorial_work_in_their_order(
    tutorial_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepare and check in earnest, and train for an epoch on a CPU with small networks."""
    write_own_files(tutorial_folder)
    short = ["--epochs", "1", "--device", "cpu"]
    fields = SMALL_RELNET | {"model.weights": "none"}
    small = [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]
    shown = [block.text for block in blocks() if block.page == "docs/tutorials/data.md" and not block.language]
    lines = [line for text in shown for line in text.splitlines() if line.startswith("affsup ")]
    for line in lines:
        words = shlex.split(line)
        more = {"minibatch": [*short, "--set", "train.milestones=[]"], "relnet": small}.get(words[2], [])
        code, error = call(words + more, monkeypatch, capsys)
        assert code == 0, (line, error)
    (run,) = Path("runs").glob("relnet-street*")
    code, error = call(["affsup", "evaluate", str(run), "--split", "val", "--device", "cpu"], monkeypatch, capsys)
    assert code == 0, error
    assert {path.parent.name for path in Path("data").glob("*/manifest.json")} == {
        *("flowers", "street", "animals", "letters")
    }
    assert len(list(Path("runs").glob("*/result.json"))) == len([line for line in lines if " train " in line]) == 4


# TOML


def test_every_toml_block_is_a_table_or_a_recipe(tutorial_folder: Path) -> None:
    shown = [block for block in blocks() if block.language == "toml"]
    assert shown
    for block in shown:
        if block.title.startswith("recipes/tables/"):
            assert experiments(load_spec(Path(block.title).stem))
        else:
            assert load_recipe(block.title)


# References and messages


def test_every_reading_that_the_code_names_is_on_the_page_once() -> None:
    page = (ROOT / "docs" / "paper-departures.md").read_text(encoding="utf-8")
    there = re.findall(r'<a id="(reading-\d+)"></a>\n\n### (\d+)\. ', page)
    assert all(anchor == f"reading-{number}" for anchor, number in there)
    assert sorted(int(number) for _, number in there) == list(range(1, len(there) + 1))
    files = [
        path for place in ("affsup_cli", "data_prep", "recipes", "benchmarks") for path in (ROOT / place).rglob("*.*")
    ]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".toml", ".md")]
    named = {name for text in texts for name in re.findall(r"#(reading-\d+)", text)}
    assert named
    assert named <= {anchor for anchor, _ in there}
    assert not [found for text in texts for found in re.findall(r"\(readings? \d+", text)]


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)
    said = constants()
    for message in messages:
        for part in (part.strip(" .()") for part in message.split("…")):
            assert any(part in text for text in said), f"no message says {part!r} any more"
    assert len(messages) > 10


def constants() -> list[str]:
    """All texts in the code; of an f-string the parts between its values."""
    files = [path for package in ("affsup_cli", "data_prep") for path in (ROOT / package).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    """Those of the site are checked when it is built."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_short_pages_stay_short() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 120


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == affsup_cli.__version__
    assert len(citation["preferred-citation"]["authors"]) == 5


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning, such as a link that leads nowhere, is an error."""
    pytest.importorskip("mkdocs", reason="the documentation needs mkdocs-material: pip install 'affsup[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_loads_nothing_from_another_machine(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page != site / "reports" / "index.html"]
    assert len(pages) > 15
    loading = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?(https?:)?//|<link\b[^>]*\bhref="?(https?:)?//')
    assert not [page for page in pages if loading.search(page.read_text(encoding="utf-8"))]


def test_the_reference_has_every_field_option_and_name(site: Path) -> None:
    recipes, commands, python = (
        (site / f"{name}.html").read_text("utf-8") for name in ("recipes", "commands", "python")
    )
    for name in recipe.recipe_names():
        for field in recipe.field_help(type(load_recipe(name))):
            assert f"<code>{field}</code>" in recipes or field.startswith("network."), field
    for name, command in SUBCOMMANDS.items():
        assert f'id="affsup-{name}"' in commands
        assert all(option in commands for parameter in command.params for option in parameter.opts)
    public = {name: getattr(affinity, name) for name in affinity.__all__}
    for name in (name for name, what in public.items() if inspect.isfunction(what) or inspect.isclass(what)):
        assert f'id="affsup_cli.affinity.{name}"' in python, name
    assert "reading 11</a>" in recipes
    assert "<!-- generated" not in recipes + commands + (site / "data-sets.html").read_text("utf-8")

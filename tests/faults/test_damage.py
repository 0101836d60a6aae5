"""Flipped bits in the files of a run: each is noticed, or leaves the content as it was."""

from __future__ import annotations

import copy
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.runs.check import check_export, check_run
from affsup_cli.runs.checkpoint import load_checkpoint
from affsup_cli.runs.digest import KEY
from affsup_cli.runs.export import export_trained, open_trained
from affsup_cli.runs.features import read_features
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.results import read_result
from data_prep.errors import AffsupError

CPU = torch.device("cpu")
Read = Callable[[RunFolder], Any]

READERS: dict[str, Read] = {
    "last.pt": lambda run: load_checkpoint(run.checkpoint, CPU),
    "best.pt": lambda run: open_trained(run.path).state(CPU),
    "export.safetensors": lambda run: (lambda model: (model, model.state(CPU)))(
        open_trained(run.path / "export.safetensors")
    ),
    "result.json": read_result,
    "metrics.jsonl": lambda run: run.metrics(),
    "recipe.toml": lambda run: run.recipe(),
    "environment.json": lambda run: run.environment(),
    "features.npz": lambda run: read_features(run.features),
}


def file_of(run: RunFolder, name: str) -> Path:
    """Return a file of a run, which for an export is written first."""
    path = run.path / name
    if name == "export.safetensors":
        export_trained(open_trained(run.path), path)
    return path


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "environment.json", "export.safetensors"])
def test_every_flipped_bit_in_the_name_of_a_digest_is_noticed(copy_run: Callable[[], RunFolder], name: str) -> None:
    run = copy_run()
    path = file_of(run, name)
    good = path.read_bytes()
    quote = b'\\"' if name == "export.safetensors" else b'"'
    start = good.index(quote + KEY.encode() + quote) + len(quote)
    for bit in range(8 * len(KEY)):
        content = bytearray(good)
        content[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert name in read_or_message(name, run)[1]


def flip(path: Path, rng: random.Random) -> int:
    """Flip one bit of a file; returns its position."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bit


def read_or_message(name: str, run: RunFolder) -> tuple[Any, str]:
    """Read a file; returns its content, or the message that it is damaged."""
    try:
        return READERS[name](run), ""
    except AffsupError as error:
        return None, str(error)


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal to the last bit, tensors and arrays included."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if hasattr(first, "dtype"):
        return bool((first == second).all())
    return bool(first == second)


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_is_noticed_or_changes_nothing(
    copy_run: Callable[[], RunFolder], name: str, rng: random.Random, times: int
) -> None:
    run = copy_run()
    path = file_of(run, name)
    good = path.read_bytes()
    expected = copy.deepcopy(READERS[name](run))  # not mapped from the file that is damaged next
    assert good
    outcomes: Counter[str] = Counter()
    for _ in range(times):
        bit = flip(path, rng)
        read, message = read_or_message(name, run)
        if message:
            assert name in message
            outcomes["noticed"] += 1
        else:
            assert same(read, expected), f"bit {bit} of {name} was read as other content"
            outcomes["harmless"] += 1
        path.write_bytes(good)
    print(f"{name}: {times} flips, {dict(outcomes)}")  # noqa: T201
    assert outcomes["noticed"]


@pytest.mark.parametrize("name", [name for name in READERS if name != "export.safetensors"])
def test_check_names_the_damaged_file_and_what_to_do(copy_run: Callable[[], RunFolder], name: str) -> None:
    run = copy_run()
    assert check_run(run) == []
    content = bytearray((run.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run.path / name).write_bytes(content)
    (fault,) = check_run(run)
    assert name in fault
    assert any(cure in fault for cure in ("delete it", "move ", "affsup evaluate", "--resume")), fault


def test_check_notices_a_damaged_export(copy_run: Callable[[], RunFolder]) -> None:
    run = copy_run()
    path = run.path.parent / "model.safetensors"
    export_trained(open_trained(run.path), path)
    assert check_export(path) == []
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    (fault,) = check_export(path)
    assert "export the run again" in fault


def test_files_of_an_older_version_have_no_digest_and_are_read(copy_run: Callable[[], RunFolder]) -> None:
    run = copy_run()
    expected = {name: copy.deepcopy(READERS[name](run)) for name in READERS if name != "export.safetensors"}
    for name in ("result.json", "environment.json", "metrics.jsonl", "recipe.toml"):
        text = (run.path / name).read_text()
        assert "xxh3" in text
        lines = [line for line in text.splitlines() if "xxh3" not in line or name == "metrics.jsonl"]
        plain = "\n".join(lines) + "\n"
        if name == "metrics.jsonl":
            plain = "".join(line.partition(', "xxh3"')[0] + "}\n" for line in lines)
        elif name != "recipe.toml":
            plain = plain.replace("\n}", "\n}").rsplit(",", 1)[0] + "\n}\n"
        (run.path / name).write_text(plain)
    for path in (run.checkpoint, run.best):
        torch.save(torch.load(path, weights_only=True), path)
    for name, content in expected.items():
        assert same(READERS[name](run), content)


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_damage_in_a_checkpoint_of_an_older_version_is_noticed(copy_run: Callable[[], RunFolder], name: str) -> None:
    run = copy_run()
    path = run.path / name
    torch.save(torch.load(path, weights_only=True), path)
    content = bytearray(path.read_bytes())
    weights = next(iter(torch.load(path, weights_only=True)["model"].values()))
    place = content.index(weights.numpy().tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AffsupError, match=rf"{name} is damaged"):
        READERS[name](run)


def test_a_truncated_or_empty_file_is_named(copy_run: Callable[[], RunFolder], rng: random.Random) -> None:
    for name in READERS:
        run = copy_run()
        if name == "export.safetensors":
            export_trained(open_trained(run.path), run.path / name)
        path = run.path / name
        content = path.read_bytes()
        for length in (0, rng.randrange(1, len(content) - 1)):
            path.write_bytes(content[:length])
            _, message = read_or_message(name, run)
            # A last line of metrics.jsonl that a kill cut short is left out.
            assert name in message or name == "metrics.jsonl"
        shutil.rmtree(run.path)

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

import data_prep
from affsup_cli.app import app
from affsup_cli.commands import prepare as command
from affsup_cli.options import expand_user
from data_prep.errors import AffsupError, UsageError
from tests.data_prep.conftest import OfficialFiles
from tests.data_prep.scene_sources import Scene, coco, mit67, picture, voc, write_coco


@pytest.fixture
def cli() -> typer.Typer:
    app = typer.Typer()
    app.command()(command.prepare)
    return app


def call(cli: typer.Typer, *arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def cells(output: str, first: str) -> list[str]:
    """The cells of the table row that starts with a text."""
    rows = [[cell.strip() for cell in re.split("[│|]", line)[1:-1]] for line in output.splitlines()]
    return next(row[1:] for row in rows if row and row[0] == first)


def test_preparing_prints_the_split_table_the_source_and_the_place(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "digits", "--data", tmp_path)
    assert result.exit_code == 0, result.output
    assert cells(result.output, "total") == ["1,295", "143", "359"]
    assert cells(result.output, "7")[2] == str(data_prep.check("digits", tmp_path).splits["test"].per_class[7])
    assert "official checksum: not known" in result.output
    assert "prepared: " in result.output
    assert "incomplete" not in result.output


def test_preparing_again_says_that_it_is_up_to_date(cli: typer.Typer, tmp_path: Path) -> None:
    call(cli, "digits", "--data", tmp_path)
    assert "up to date: " in call(cli, "digits", "--data", tmp_path).output


def test_many_classes_are_shown_as_a_range(cli: typer.Typer, tmp_path: Path) -> None:
    archive = OfficialFiles().tar(tmp_path / "c.tar.gz", "cifar-100-python", OfficialFiles().cifar100())
    result = call(cli, "cifar100", "--data", tmp_path / "data", "--from", archive)
    assert cells(result.output, "each of 100 classes")[2] == "1-1"
    assert "official checksum: not matched (md5)" in result.output
    assert "incomplete: 200 of 50,000 training images" in result.output


def test_a_limit_is_passed_on(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "digits", "--data", tmp_path, "--limit", 100)
    assert cells(result.output, "total") == ["90", "10", "359"]
    assert "incomplete: 100 of 1,438 training images" in result.output


def test_the_place_comes_from_the_environment(
    cli: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFSUP_DATA", str(tmp_path / "elsewhere"))
    call(cli, "digits")
    assert (tmp_path / "elsewhere" / "digits" / "manifest.json").exists()


def test_check_verifies_and_prepares_nothing(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "digits", "--data", tmp_path, "--check")
    assert isinstance(result.exception, AffsupError)
    assert list(tmp_path.iterdir()) == []
    call(cli, "digits", "--data", tmp_path)
    assert "verified: " in call(cli, "digits", "--data", tmp_path, "--check").output


@pytest.mark.parametrize("option", [["--limit", 3], ["--from", "x"]])
def test_check_takes_no_other_request(cli: typer.Typer, tmp_path: Path, option: list) -> None:
    assert isinstance(call(cli, "digits", "--data", tmp_path, "--check", *option).exception, UsageError)


def test_class_names_are_no_markup(cli: typer.Typer, tmp_path: Path) -> None:
    files = OfficialFiles().tiny_imagenet()
    files["words.txt"] = files["words.txt"].replace(b"thing 2", b"[/red]thing[bold]")
    archive = OfficialFiles().zip(tmp_path / "t.zip", "tiny-imagenet-200", files)
    result = call(cli, "tiny-imagenet", "--data", tmp_path / "data", "--from", archive)
    assert "[/red]thing[bold], object" in result.output


def voc_folder(folder: Path, count: int = 200) -> Path:
    """A VOC of which one image is missing and one of another size."""
    pair = [("dog", 1, 1, 9, 9, 0), ("cat", 3, 3, 12, 12, 0), ("cow", 70, 1, 80, 9, 0)]
    scenes = [Scene(f"{number:06d}", pair) for number in range(1, count + 1)]
    scenes[5].picture = None
    scenes[7].picture = picture((32, 24))
    scenes[9].objects = []
    return OfficialFiles().folder(folder, "VOC2007", voc(scenes, [Scene("000900", pair[:1])]))


def test_a_set_of_scenes_prints_its_split_table_and_what_was_left_out(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "voc07", "--data", tmp_path / "data", "--from", voc_folder(tmp_path))
    assert result.exit_code == 0, result.output
    assert cells(result.output, "images") == ["198", "1"]
    assert cells(result.output, "objects") == ["394", "1"]
    assert cells(result.output, "pairs") == ["394", "0"]
    assert cells(result.output, "images without a pair") == ["1", "1"]
    assert cells(result.output, "images without an object") == ["1", "0"]
    assert cells(result.output, "cat") == ["197", "0"]
    lines = [line for line in result.output.splitlines() if line.startswith("left out: ")]
    assert lines[0].startswith(
        "left out: 199 objects, box empty or outside the image: 000001.jpg object 3 [69, 0, 80, 9]; "
    )
    assert lines[0].endswith("; ...")
    assert "left out: 1 image, of another size than annotated: 000008.jpg is 32x24, annotated as 64x48" in lines
    assert "left out: 4 objects, image left out: 000006.jpg; 000008.jpg" in lines
    assert any(line.startswith("left out: 1 image, missing: 000006.jpg expected ") for line in lines)
    assert "incomplete: 198 of 5,011 training images, 1 of 4,952 test images" in result.output
    again = call(cli, "voc07", "--data", tmp_path / "data", "--check").output
    assert [line for line in again.splitlines() if line.startswith("left out: ")] == lines
    assert "verified: " in again


def test_a_set_of_categories_alone_prints_no_row_of_objects_and_names_what_was_left_out(
    cli: typer.Typer, tmp_path: Path
) -> None:
    train = {f"{place}/{number}.jpg": picture() for number in range(60) for place in ("bar", "nursery")}
    broken = {"bar/7.jpg": b"no picture", "nursery/8.jpg": None}
    folder = OfficialFiles().folder(tmp_path, "mit67", mit67(train | broken, {"bar/test.jpg": picture()}))
    result = call(cli, "mit67", "--data", tmp_path / "data", "--from", folder)
    assert result.exit_code == 0, result.output
    assert cells(result.output, "images") == ["118", "1"]
    assert cells(result.output, "category nursery") == ["59", "0"]
    assert not re.search("objects|pair|class", result.output)
    lines = [line for line in result.output.splitlines() if line.startswith("left out: ")]
    assert lines == [
        "left out: 1 image, cannot be decoded: bar/7.jpg cannot be decoded (of no known format)",
        f"left out: 1 image, missing: nursery/8.jpg expected {folder}/Images/nursery/8.jpg",
    ]
    assert "incomplete: 118 of 5,360 training images, 1 of 1,340 test images" in result.output


def test_a_set_of_categories_and_objects_prints_both(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "shape-scenes", "--data", tmp_path, "--limit", 14)
    assert cells(result.output, "images") == ["14", "400"]
    assert cells(result.output, "category garden")[1] == "58"
    assert cells(result.output, "heart")[1] == "274"


def test_many_categories_are_shown_as_a_range(cli: typer.Typer, tmp_path: Path) -> None:
    train = {f"place {number}/1.jpg": picture() for number in range(30)}
    folder = OfficialFiles().folder(tmp_path, "mit67", mit67(train, {"place 3/2.jpg": picture()}))
    result = call(cli, "mit67", "--data", tmp_path / "data", "--from", folder)
    assert cells(result.output, "each of 30 categories") == ["1-1", "0-1"]


def test_several_sources_are_taken_together(cli: typer.Typer, tmp_path: Path) -> None:
    scenes = [Scene("1", [(1, 0, 0, 5, 5, 0)]), Scene("2"), Scene("3")]
    folder = write_coco(tmp_path / "coco", coco(scenes, [3]), scenes)
    sources = ["--from", folder / "annotations", "--from", folder / "val2014"]
    result = call(cli, "coco", "--data", tmp_path / "data", *sources, "--limit", 1)
    assert cells(result.output, "images") == ["1", "1"]
    assert "source: instances_val2014.json, instances_val2017.json, pictures" in result.output


def test_a_set_that_cannot_be_downloaded_says_what_to_give(cli: typer.Typer, tmp_path: Path) -> None:
    for name in ("coco", "vg", "mit67"):
        error = call(cli, name, "--data", tmp_path).exception
        assert isinstance(error, UsageError)
        assert f"data set '{name}' cannot be downloaded: give with --from" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_generated_scenes_take_no_source(cli: typer.Typer, tmp_path: Path) -> None:
    error = call(cli, "shapes", "--data", tmp_path, "--from", tmp_path).exception
    assert isinstance(error, UsageError)
    assert "'shapes' needs no source" in str(error)


def test_categories_without_a_training_image_are_named(cli: typer.Typer, tmp_path: Path) -> None:
    few = call(cli, "shape-scenes", "--data", tmp_path / "few", "--limit", 3)
    assert few.exit_code == 0, few.output
    (warning,) = [line for line in few.output.splitlines() if line.startswith("warning: ")]
    assert re.match(r"warning: [456] of 7 categories have no training image \(\w+, .*\)$", warning)
    assert "warning" not in call(cli, "shape-scenes", "--data", tmp_path / "many", "--limit", 100).output


def test_a_mistake_comes_without_an_empty_line(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "cifar10", "--data", tmp_path, "--from", tmp_path / "absent")
    assert isinstance(result.exception, AffsupError)
    assert result.output == ""


def test_a_tilde_is_the_home_folder_in_options_and_variables(
    cli: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    official = OfficialFiles()
    official.folder(tmp_path / "files", "cifar-10-batches-py", official.cifar10())
    call(cli, "cifar10", "--data=~/sets", "--from=~/files/cifar-10-batches-py")
    monkeypatch.setenv("AFFSUP_DATA", "~/other")
    call(cli, "digits")
    assert (tmp_path / "sets" / "cifar10" / "manifest.json").exists()
    assert (tmp_path / "other" / "digits" / "manifest.json").exists()
    assert not (tmp_path / "~").exists()
    assert "Could not determine home directory" in call(cli, "digits", "--data=~nobody-of-that-name/x").output


def test_every_path_option_expands_a_tilde() -> None:
    found = 0
    for registered in app.registered_commands:
        assert registered.callback
        for name, hint in get_type_hints(registered.callback, include_extras=True).items():
            if "Path" in str(get_args(hint)[:1]):
                found += 1
                assert get_args(hint)[1].callback is expand_user, f"{registered.callback.__name__} {name}"
    assert found > 20

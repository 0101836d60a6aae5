from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import data_prep
from affsup_cli.commands import prepare as command
from affsup_cli.errors import AffsupError, UsageError
from tests.data_prep.conftest import OfficialFiles


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
    assert "not the whole" not in result.output


def test_preparing_again_says_that_it_is_up_to_date(cli: typer.Typer, tmp_path: Path) -> None:
    call(cli, "digits", "--data", tmp_path)
    assert "up to date: " in call(cli, "digits", "--data", tmp_path).output


def test_many_classes_are_shown_as_a_range(cli: typer.Typer, tmp_path: Path) -> None:
    archive = OfficialFiles().tar(tmp_path / "c.tar.gz", "cifar-100-python", OfficialFiles().cifar100())
    result = call(cli, "cifar100", "--data", tmp_path / "data", "--from", archive)
    assert cells(result.output, "each of 100 classes")[2] == "1-1"
    assert "official checksum: not matched (md5)" in result.output
    assert "not the whole data set: 200 of 50,000 training images" in result.output


def test_a_limit_is_passed_on(cli: typer.Typer, tmp_path: Path) -> None:
    result = call(cli, "digits", "--data", tmp_path, "--limit", 100)
    assert cells(result.output, "total") == ["90", "10", "359"]
    assert "not the whole data set: 100 of 1,438 training images" in result.output


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

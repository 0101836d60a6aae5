"""Uploads, with the client of the hub replaced by one that keeps what it is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from affsup_cli.commands.export import export
from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.folder import RunFolder
from data_prep.errors import AffsupError, UsageError
from tests.commands.calling import invoke

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'affsup[hub]'")
errors = pytest.importorskip("huggingface_hub.errors")


class FakeApi:
    """Repositories in memory: files by name, and whether the repository is private."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.error: Exception | None = None

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> str:
        if self.error:
            raise self.error
        assert exist_ok or repo_id not in self.repositories
        if repo_id not in self.repositories:
            self.repositories[repo_id], self.private[repo_id] = {}, bool(private)
        return f"https://hub.example/{repo_id}"

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> None:
        for operation in operations:
            self.repositories[repo_id][operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        self.commits.append(commit_message)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return api


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with what a finished run leaves."""
    run = RunFolder(tmp_path / "runs" / "mine")
    run.path.mkdir(parents=True)
    run.write_recipe(load_recipe("minibatch"))
    run.write_environment({"affsup": "0.1.0", "data": {"name": "any", "digest": "d" * 64, "classes": ["cat", "dog"]}})
    save_checkpoint(run.best, {"model": build_classifier("resnet20", 1, 2).state_dict(), "epoch": 1, "score": 0.0})
    run.write_result({"kind": "train", "epochs": 1, "best_epoch": 1, "metrics": {"test_accuracy": 0.5}})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(status: int) -> Exception:
    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)  # its arguments differ by version
    Exception.__init__(error, f"{status} Client Error\nmore lines")
    error.response = SimpleNamespace(status_code=status)
    assert isinstance(error, Exception)
    return error


def test_file_and_card_are_uploaded_in_one_commit_to_a_private_repository(here: Path, hub: FakeApi) -> None:
    result = invoke(export, "mine", "--push", "me/my-model")
    assert result.exit_code == 0, result.exception
    assert "uploaded to https://hub.example/me/my-model" in result.output
    files = hub.repositories["me/my-model"]
    assert files == {
        "mine.safetensors": (here / "exports" / "mine.safetensors").read_bytes(),
        "README.md": (here / "exports" / "mine.md").read_bytes(),
    }
    assert hub.private["me/my-model"]
    assert hub.commits == ["affsup export: mine.safetensors"]
    (here / "got.safetensors").write_bytes(files["mine.safetensors"])
    assert open_trained(here / "got.safetensors").digest == open_trained(here / "runs" / "mine").digest
    assert invoke(export, "mine", "--push", "me/my-model").exit_code == 0
    assert len(hub.commits) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_one_line_that_says_where_to_get_one(
    here: Path, hub: FakeApi, status: int
) -> None:
    hub.error = refusal(status)
    error = invoke(export, "mine", "--push", "me/my-model").exception
    assert isinstance(error, AffsupError)
    assert f"(HTTP {status}): the token is missing, is invalid or may not write there. `hf auth login`" in str(error)
    assert "\n" not in str(error)


def test_without_a_token_the_message_says_where_to_get_one(here: Path, hub: FakeApi) -> None:
    hub.error = errors.LocalTokenNotFoundError("no\ntoken")
    error = invoke(export, "mine", "--push", "me/my-model").exception
    assert isinstance(error, AffsupError)
    assert "no token of yours. `hf auth login`" in str(error)


@pytest.mark.parametrize("failure", [ConnectionError("no route\nto host"), refusal(500), RuntimeError()])
def test_another_failure_is_one_line_and_the_files_are_kept(here: Path, hub: FakeApi, failure: Exception) -> None:
    hub.error = failure
    error = invoke(export, "mine", "--push", "me/my-model").exception
    assert isinstance(error, AffsupError)
    assert "\n" not in str(error)
    assert "exports/mine.safetensors and exports/mine.md are kept" in str(error)
    assert (here / "exports" / "mine.safetensors").exists()


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "/x", "me/a b", "me/--x", "https://huggingface.co/me/x", ""])
def test_anything_but_owner_and_name_is_refused_before_anything_is_written(here: Path, hub: FakeApi, name: str) -> None:
    error = invoke(export, "mine", "--push", name).exception
    assert isinstance(error, UsageError)
    assert "expected OWNER/NAME" in str(error)
    assert not (here / "exports").exists()


def test_without_the_library_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = invoke(export, "mine", "--push", "me/my-model").exception
    assert isinstance(error, AffsupError)
    assert "pip install 'affsup[hub]'" in str(error)

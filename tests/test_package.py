"""The wheel, as it would be installed elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import affsup_cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content, as site-packages would."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("affsup-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_packages_and_the_recipes_inside_one_of_them(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {
        "affsup_cli",
        "data_prep",
        f"affsup-{affsup_cli.__version__}.dist-info",
    }
    shipped = {path.relative_to(site / "affsup_cli" / "recipes") for path in site.rglob("*.toml")}
    assert shipped == {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.toml")}
    assert (site / "affsup_cli" / "py.typed").is_file()


def test_the_installed_copy_works_from_any_folder(site: Path, tmp_path: Path) -> None:
    script = (
        "import sys, affsup_cli, affsup_cli.app\n"
        f"assert affsup_cli.__file__.startswith({str(site)!r}), affsup_cli.__file__\n"
        "sys.argv = ['affsup', *sys.argv[1:]]\n"
        "affsup_cli.app.main()\n"
    )
    for arguments, said in ((["list"], "table3"), (["show", "minibatch"], "affinity.gamma")):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_the_public_names_are_imported_when_first_used() -> None:
    script = "import sys, affsup_cli; assert 'torch' not in sys.modules; affsup_cli.AffsupError"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
    assert {name for name in affsup_cli.__all__ if not hasattr(affsup_cli, name)} == set()
    assert affsup_cli.BatchAffinityLoss is affsup_cli.affinity.BatchAffinityLoss

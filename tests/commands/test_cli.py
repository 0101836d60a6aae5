"""The command line as a person calls it, in a process of its own where the process matters."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from affsup_cli.app import main
from affsup_cli.runs.checkpoint import load_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.devices import device_name
from affsup_cli.views.live_training import duration
from tests.reporting.fake_runs import BASE, RunMaker

COMMANDS = [
    *("prepare", "train", "evaluate", "predict", "export", "sweep", "report", "compare", "bench"),
    *("list", "show", "demo", "doctor"),
]
# Small batches make the second epoch long enough to be caught in its middle.
SHORT = ["--epochs", "2", "--set", "train.batch_size=32", "--set", "train.learning_rate=0.01", "--device", "cpu"]


def affsup(*arguments: str, cwd: Path, data: Path | None = None) -> tuple[int, str, str]:
    """Call affsup in this process, in the folder `cwd`; gives exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["affsup", *arguments])
        for name, value in environment(cwd, data).items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Call affsup in this process, in an empty folder."""
    return partial(affsup, cwd=tmp_path)


def environment(cwd: Path, data: Path | None) -> dict[str, str]:
    places = {
        "AFFSUP_DATA": str(data or cwd / "data"),
        "AFFSUP_RUNS": str(cwd / "runs"),
        "AFFSUP_REPORTS": str(cwd / "reports"),
    }
    return {**os.environ, **places, "COLUMNS": "200", "PYTHONWARNINGS": "error"}


def test_help_answers_without_loading_anything_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from affsup_cli.app import main\n"
        f"for command in [[], *([each] for each in {COMMANDS!r})]:\n"
        "    sys.argv = ['affsup', *command, '--help']\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as exit:\n"
        "        assert not exit.code, (command, exit.code)\n"
        "    heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'h5py', 'matplotlib', 'scipy', 'sklearn'}\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("", *(f"{each} " for each in COMMANDS)):
        assert f"Usage: affsup {command}[OPTIONS]" in done.stdout


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_training_begins_is_said_once_imports_are_whole(name: str, tmp_path: Path) -> None:
    script = (
        "import signal, sys\n"
        "from affsup_cli.app import main\n"
        "class Signals:\n"
        "    def find_spec(module, *_):\n"
        "        if module == 'affsup_cli.tasks.launch':\n"
        f"            signal.raise_signal(signal.{name})\n"
        "sys.meta_path.insert(0, Signals)\n"
        "sys.argv = ['affsup', 'train', 'minibatch']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert 'affsup_cli.tasks.launch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "affsup: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_the_mini_batch_path_does_not_load_torchvision(digits: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from affsup_cli.recipe import load_recipe\n"
        "from affsup_cli.tasks import launch, build_task\n"
        f"build_task(load_recipe('minibatch', {{'run.device': 'cpu'}}), Path({str(digits)!r})).begin_epoch(0)\n"
        "assert not {'torchvision', 'sklearn', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short run on the digits, left alone."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    code, _, error = affsup("train", "minibatch", *SHORT, "--name", "run", cwd=cwd, data=digits)
    assert code == 0, error
    return RunFolder(cwd / "runs" / "run")


def test_a_run_leaves_everything_that_its_folder_promises(undisturbed: RunFolder) -> None:
    result = undisturbed.result()
    assert result["kind"] == "train"
    assert result["epochs"] == 2
    assert result["best_epoch"] in (1, 2)
    assert 0 < result["metrics"]["test_accuracy"] < 1
    assert [record["epoch"] for record in undisturbed.metrics()] == [1, 2]
    record = undisturbed.metrics()[0]
    for key in (
        "train_loss",
        "train_class_loss",
        "train_affinity_loss",
        "train_mass",
        "gradient_share",
        "val_accuracy",
        "val_mass",
    ):
        assert isinstance(record[key], float), key
    ran_on = undisturbed.environment()
    assert ran_on["device"] == "cpu"
    assert ran_on["data"]["name"] == "digits"
    assert undisturbed.recipe().train.epochs == 2
    assert torch.load(undisturbed.best, weights_only=True)["epoch"] == result["best_epoch"]


def test_a_finished_run_is_not_run_again(undisturbed: RunFolder, digits: Path) -> None:
    cwd = undisturbed.path.parent.parent
    before = undisturbed.checkpoint.stat().st_mtime_ns
    for resume in ([], ["--resume"]):
        code, said, error = affsup("train", "minibatch", *SHORT, "--name", "run", *resume, cwd=cwd, data=digits)
        assert code == 0, error
        assert "finished already" in said
    assert undisturbed.checkpoint.stat().st_mtime_ns == before


def test_evaluate_prints_the_numbers_of_the_result(undisturbed: RunFolder, digits: Path) -> None:
    cwd = undisturbed.path.parent.parent
    code, said, error = affsup("evaluate", "run", "--device", "cpu", cwd=cwd, data=digits)
    assert code == 0, error
    printed = dict(line.split() for line in said.splitlines())
    stored = undisturbed.result()["metrics"]
    assert printed["test_accuracy"] == f"{stored['test_accuracy']:.2%}"
    assert float(printed["test_mass"]) == pytest.approx(stored["test_mass"], abs=5e-5)


def running(cwd: Path, data: Path) -> subprocess.Popen[str]:
    # A checkpoint after every step, so that a kill at any time is one in mid-epoch.
    command = [
        sys.executable,
        "-m",
        "affsup_cli",
        "train",
        "minibatch",
        *SHORT,
        "--set",
        "run.checkpoint_seconds=1e-6",
        "--name",
        "run",
    ]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(cwd, data), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def in_mid_epoch(tmp_path: Path, digits: Path) -> Iterator[subprocess.Popen[str]]:
    """A process held (SIGSTOP) in the middle of its second epoch."""
    process = running(tmp_path, digits)
    run = RunFolder(tmp_path / "runs" / "run")
    while not run.checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    while True:
        process.send_signal(signal.SIGSTOP)
        state = load_checkpoint(run.checkpoint, torch.device("cpu"))
        if (state["epoch"], state["step"]) >= (1, 3):
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_in_mid_epoch_resumes_to_the_same_bits(
    in_mid_epoch: subprocess.Popen[str], number: signal.Signals, undisturbed: RunFolder, tmp_path: Path, digits: Path
) -> None:
    in_mid_epoch.send_signal(number)
    in_mid_epoch.send_signal(signal.SIGCONT)
    _, error = in_mid_epoch.communicate()
    run = RunFolder(tmp_path / "runs" / "run")
    if number == signal.SIGKILL:
        assert in_mid_epoch.returncode == -signal.SIGKILL
    else:
        assert in_mid_epoch.returncode == 1
        assert error.startswith("affsup: stopped in epoch 2 after step")
    assert not run.finished
    assert load_checkpoint(run.checkpoint, torch.device("cpu"))["step"] >= 3

    code, _, error = affsup("train", "minibatch", *SHORT, "--name", "run", "--resume", cwd=tmp_path, data=digits)
    assert code == 0, error
    for file in ("checkpoint", "best"):
        resumed, whole = (
            load_checkpoint(getattr(each, file), torch.device("cpu"))["model"] for each in (run, undisturbed)
        )
        assert all(torch.equal(resumed[key], whole[key]) for key in whole), file
    timed = ("seconds", "images_per_second")
    stories = [
        [{k: v for k, v in line.items() if k not in timed} for line in each.metrics()] for each in (run, undisturbed)
    ]
    assert stories[0] == stories[1]
    assert run.result()["metrics"] == undisturbed.result()["metrics"]


def test_an_unfinished_run_goes_on_only_when_asked_and_with_the_same_recipe(
    undisturbed: RunFolder, call: Callable[..., tuple[int, str, str]], tmp_path: Path, digits: Path
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "runs" / "run")
    (tmp_path / "runs" / "run" / "result.json").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs" / "run").iterdir()}
    for extra, said in (
        ([], "add --resume"),
        (["--resume", "--gamma", "2"], "affinity.gamma is 4.0 there, 2.0 here"),
        (["--resume", "--epochs", "3"], "train.epochs is 2 there, 3 here"),
    ):
        code, _, error = call("train", "minibatch", *SHORT, "--name", "run", *extra, data=digits)
        assert (code, said in error) == (2, True), error
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs" / "run").iterdir()} == before


def test_two_processes_cannot_train_in_one_folder(
    in_mid_epoch: subprocess.Popen[str], tmp_path: Path, digits: Path
) -> None:
    code, _, error = affsup("train", "minibatch", *SHORT, "--name", "run", "--resume", cwd=tmp_path, data=digits)
    assert code == 1
    assert "in use by another process" in error
    in_mid_epoch.send_signal(signal.SIGCONT)
    assert in_mid_epoch.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "minibach"], 2, "did you mean 'minibatch'"),
        (["train", "minibatch", "--dataset", "cifar11"], 2, "no data set 'cifar11'"),
        (["train", "minibatch", "--dataset", "cifar10"], 1, "affsup prepare cifar10"),
        (["train", "minibatch", "--arch", "vgg"], 2, "no architecture 'vgg'"),
        (["train", "minibatch", "--gamma", "0.5"], 2, "must be 0 or at least 1"),
        (["train", "minibatch", "--gamma", "much"], 2, "Invalid value for '--gamma'"),
        (["train", "minibatch", "--set", "train.epohcs=3"], 2, "did you mean 'train.epochs'"),
        (["train", "minibatch", "--set", "epochs"], 2, "key=value"),
        (["train", "minibatch", "--device", "tpu"], 2, "run.device = 'tpu'"),
        (["train", "minibatch", "--resume"], 2, "nothing to resume"),
        (
            ["train", "relnet", "--gpus", "3", "--device", "cpu", "--set", "train.batch_size=2"],
            2,
            "train.batch_size = 2 for 3 processes",
        ),
        (["train"], 2, "Missing argument"),
        (["evaluate", "nowhere"], 2, "is not a run folder"),
        (["evaluate", "nowhere", "--split", "dev"], 2, "--split"),
        (["train", "minibatch", "--name", ".."], 2, "--name '..'"),
        (["train", "minibatch", "--runs", __file__], 2, "--runs"),
        (["sweep", "table33"], 2, "table3"),
        (["sweep", "table3", "--only", "cifar12/*"], 2, "no cell of table3 matches"),
        (["sweep", "table3", "--jobs", "0"], 2, "--jobs"),
        (["sweep", "table3", "--device", "tpu"], 2, "run.device = 'tpu'"),
        (["sweep", "table3", "--only", "cifar10"], 1, "affsup prepare cifar10"),
        (["sweep", "table3", "--seeds", "0"], 2, "--seeds 0"),
        (["report", "table33"], 2, "table3"),
        (["show", "tabel3"], 2, "did you mean 'table3'"),
        (["prepare", "cifar11"], 2, "no data set 'cifar11'"),
        (["prepare", "cifar10", "--from", "nowhere.tar.gz"], 2, "nowhere.tar.gz"),
        (["fly"], 2, "No such command"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_leaves_nothing(
    arguments: list[str], code: int, said: str, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    got, _, error = call(*arguments)
    assert said in " ".join(error.split())
    assert got == code
    assert not (tmp_path / "runs").exists()


def test_a_sweep_runs_what_is_missing_and_only_that(tmp_path: Path, digits: Path) -> None:
    shared = ["--set", "train.epochs=1", "--set", "train.batch_size=64", "--device", "cpu"]
    code, said, error = affsup("sweep", "digits-table3", "--dry-run", *shared, cwd=tmp_path, data=digits)
    assert code == 0, error
    assert "6 runs, 6 to do" in said
    assert not (tmp_path / "runs").exists()

    only = ("--only", "*/base", "--seeds", "1")
    code, _, error = affsup("sweep", "digits-table3", *only, *shared, cwd=tmp_path, data=digits)
    assert code == 0, error
    runs = list((tmp_path / "runs").iterdir())
    assert [run.name.rpartition("-")[0] for run in runs] == ["minibatch-digits-resnet20-base-seed0"]
    written = (runs[0] / "result.json").stat().st_mtime_ns

    code, said, error = affsup("sweep", "digits-table3", "--seeds", "1", *shared, cwd=tmp_path, data=digits)
    assert code == 0, error
    assert "2 runs, 1 to do" in said
    assert (runs[0] / "result.json").stat().st_mtime_ns == written
    assert len(list((tmp_path / "runs").iterdir())) == 2

    code, said, error = affsup("report", "digits-table3", cwd=tmp_path)
    assert code == 0, error
    assert "train.epochs = 1 instead of 40" in " ".join(said.split())
    accuracy = json.loads((runs[0] / "result.json").read_text())["metrics"]["test_accuracy"]
    assert f"{100 * accuracy:.2f}" in (tmp_path / "reports" / "digits-table3.md").read_text()


def test_the_plan_of_a_sweep_names_cells_runs_times_and_what_stands_in_the_way(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    make = RunMaker(tmp_path / "runs")
    here = device_name(torch.device("cpu"))
    make.train(BASE, 0.9, device_name=here)  # 200 epochs in one second
    begun = make.start(BASE, seed=1, device_name=here)
    for epoch in range(1, 101):
        begun.append_metrics({"epoch": epoch, "seconds": 3.0})
    tables = ["table3", "figure6", "--only", "table3/cifar10/resnet20", "--seeds", "3", "--jobs", "2"]
    code, out, error = call("sweep", *tables, "--device", "cpu", "--dry-run")
    assert (code, error) == (0, "")
    title, heads, *lines, obstacle = out.splitlines()
    of_epoch = (100 * 3 + 1) / 300
    base, affinity = of_epoch * 300, of_epoch * 600
    total = duration((base + affinity) / 2)
    assert title == f"table3 figure6: 6 runs, 5 to do on cpu, 2 at a time, about {total}"
    assert heads.split() == ["cell", "runs", "finished", "unfinished", "to", "do", "time"]
    assert [line.split() for line in lines] == [
        ["table3/cifar10/resnet20/base", "3", "1", "1", "2", duration(base)],
        ["table3/cifar10/resnet20/affinity", "3", "0", "0", "3", duration(affinity)],
    ]
    assert "run `affsup prepare cifar10" in obstacle


def test_a_sweep_goes_on_past_a_damaged_run(
    undisturbed: RunFolder, call: Callable[..., tuple[int, str, str]], tmp_path: Path, digits: Path
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "runs" / "damaged")
    (tmp_path / "runs" / "damaged" / "result.json").write_text("{}")
    code, out, error = call("sweep", "digits-table3", "--dry-run", data=digits)
    assert code == 0, error
    assert "warning: run damaged is left out" in out
    assert "6 runs, 6 to do" in out


def test_a_report_on_an_empty_machine_gives_the_papers_numbers_and_the_command(tmp_path: Path) -> None:
    code, said, error = affsup("report", "table3", cwd=tmp_path)
    assert code == 0, error
    for number in ("91.34", "93.42", "70.50", "51.82"):
        assert number in said
    assert "affsup sweep table3" in said
    assert {"table3.csv", "table3.md"} <= {path.name for path in (tmp_path / "reports").iterdir()}


@pytest.mark.parametrize("name", ["minibatch", "table3", "table4", "figure5", "figure6", "digits"])
def test_show_knows_what_list_names(name: str, call: Callable[..., tuple[int, str, str]], digits: Path) -> None:
    code, listed, _ = call("list", data=digits)
    assert code == 0
    assert name in listed
    code, shown, error = call("show", name, data=digits)
    assert code == 0, error
    assert shown


def test_doctor_names_device_versions_and_data(call: Callable[..., tuple[int, str, str]], digits: Path) -> None:
    code, said, error = call("doctor", data=digits)
    assert code == 0, error
    assert f"torch {version('torch')}" in said
    assert "1,295 train" in said

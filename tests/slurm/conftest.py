"""A real Slurm of one machine, for as long as the tests take: Debian's `slurm-wlm` and `munge`, started by root."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
SECONDS_TO_START = 20

# Without systemd, cgroups and accounting.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
MailProg=/bin/true
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=usual Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=2 State=UP
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Slurm's commands work while this stands."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: {', '.join(missing)} not found (Debian: slurm-wlm, munge)")
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm of its own")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm"))  # pytest's are too deep for the path of a socket
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            stack.enter_context(_munge(folder))
            stack.enter_context(_cluster(folder))
        except _NotStartedError as reason:
            pytest.skip(f"Slurm cannot be started here: {reason}")
        yield


class _NotStartedError(Exception):
    pass


@contextmanager
def _munge(folder: Path) -> Iterator[None]:
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    files |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    options = [f"--{name}={path}" for name, path in files.items()]
    with _daemon(["munged", "--foreground", *options]):
        _wait(lambda: files["socket"].exists(), "munged opens no socket", files["log-file"])
        yield


@contextmanager
def _cluster(folder: Path) -> Iterator[None]:
    host = socket.gethostname().partition(".")[0]
    first, second = _free_port(), _free_port()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, folder=folder, controller_port=first, node_port=second), encoding="utf-8"
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        # Not a job of the cluster on which the tests may run.
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
            patch.delenv(name)
        with _daemon(["slurmctld", "-D", "-i"]), _daemon(["slurmd", "-D", "-N", host]):
            _wait(_idle, "its node does not become idle", folder / "slurmctld.log")
            try:
                yield
            finally:
                subprocess.run(["scancel", "--me", "--full", "--signal=KILL"], check=False)
                subprocess.run(["scancel", "--me"], check=False)


@contextmanager
def _daemon(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _idle() -> bool:
    answer = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
    return "idle" in answer.stdout


def _wait(holds: Callable[[], bool], what: str, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while not holds():
        if time.monotonic() > end:
            tail = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
            raise _NotStartedError(f"{what} ({'; '.join(tail) or 'no log'})")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])

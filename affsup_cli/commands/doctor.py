"""`affsup doctor`: devices, versions and folders of this machine."""

from __future__ import annotations

from affsup_cli.options import DataDir, RunsDir
from affsup_cli.resolve import DATA_DIR, RUNS_DIR


def doctor(data: DataDir = DATA_DIR, runs: RunsDir = RUNS_DIR) -> None:
    """Show the devices, library versions, folders and prepared data sets of this machine.

    \b
    affsup doctor
    """
    import importlib.util
    import platform
    import shutil
    from pathlib import Path

    import torch

    import affsup_cli
    from affsup_cli.affinity.triton_support import why_not_triton
    from affsup_cli.runs.environment import library_versions, source_commit
    from affsup_cli.runs.folder import run_folders
    from affsup_cli.runtime.devices import describe_gpus, device_name, gpus, has_bf16_instructions
    from affsup_cli.views import inventory
    from affsup_cli.views.console import console

    source = source_commit()
    commit = f", commit {source['commit'][:12]}{' with changes' if source['dirty'] else ''}" if source["commit"] else ""
    console.print(f"affsup {affsup_cli.__version__}{commit}, Python {platform.python_version()}, {platform.platform()}")
    console.print(", ".join(f"{name} {version}" for name, version in library_versions().items()))
    cpu = torch.device("cpu")
    bf16 = "with bf16 instructions" if has_bf16_instructions(cpu) else "without bf16 instructions: train in float32"
    console.print(f"cpu: {device_name(cpu)}, {torch.get_num_threads()} threads, {bf16}")
    for index in range(gpus()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        device = torch.device("cuda", index)
        reason = why_not_triton(device)
        kernel = f"PyTorch's operators ({reason})" if reason else "a Triton kernel"
        console.print(f"cuda:{index}: {device_name(device)}, {memory:.0f} GiB; L_G of mini-batches by {kernel}")
    if not gpus():
        console.print(f"{describe_gpus()}: runs use the cpu")
    console.print(f"disk: {shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free in the current folder")
    finished = [run.finished for run in run_folders(runs)]
    console.print(f"runs: {sum(finished)} finished, {len(finished) - sum(finished)} unfinished in {runs}")
    submitit = "" if importlib.util.find_spec("submitit") else "not "
    console.print(f"slurm: sbatch {'' if shutil.which('sbatch') else 'not '}found, submitit {submitit}installed")
    console.print(inventory.datasets(data))

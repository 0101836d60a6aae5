"""What a measurement was taken on."""

from __future__ import annotations

import datetime

import torch

from affsup_cli.engine.devices import device_name
from affsup_cli.engine.environment import source_commit


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what every row of a result keeps: device, threads, torch's version, date, commit ("+": with changes)."""
    source = source_commit()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": f"{(source['commit'] or 'unknown')[:12]}{'+' if source['dirty'] else ''}",
    }

"""Decoding Tiny ImageNet's JPEGs on all cores against one, in turns, reading the archive included.

    AFFSUP_REAL_DATA=FOLDER python benchmarks/preparation.py [--rounds N]

The photographs are those of `tiny_imagenet/tiny-imagenet-20.zip` there (20 classes in the official layout), as often as
makes the official 110,000. `ratio` is of wall time and needs an idle machine; `ratio_of_work` is of processor time, all
processes together and times the cores: what the machine gives if nobody else is on it and one process does not keep the
others waiting.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import time
import zipfile
from pathlib import Path

from data_prep.decode.parallel import decode_all, usable_cores
from data_prep.sets.tiny_imagenet import decode

IMAGES = 110_000
BLOCK = 1000


def measure(archive: zipfile.ZipFile, names: list[str], cores: int) -> tuple[float, float]:
    """Return the seconds on the clock and of all processors."""
    encoded = ((name, archive.read(name)) for name in itertools.islice(itertools.cycle(names), IMAGES))
    begun, worked = time.perf_counter(), _work()
    count = sum(map(len, decode_all(encoded, IMAGES, (64, 64, 3), decode, BLOCK, cores)))
    if count != IMAGES:
        raise AssertionError(f"{count} images of {IMAGES}")
    return time.perf_counter() - begun, _work() - worked


def _work() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cores = usable_cores()
    taken: dict[int, list[tuple[float, float]]] = {1: [], cores: []}
    with zipfile.ZipFile(Path(os.environ["AFFSUP_REAL_DATA"]) / "tiny_imagenet" / "tiny-imagenet-20.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")]
        for turn in range(rounds):
            for count in (1, cores) if turn % 2 == 0 else (cores, 1):
                taken[count].append(measure(archive, names, count))
    from record import record  # every process that decodes runs this file's top anew, and torch is long to import
    from torch import device

    rows = [
        {
            "cores": count,
            "images_per_second": round(IMAGES / statistics.median(seconds for seconds, _ in measured)),
            "processor_seconds": round(statistics.median(work for _, work in measured), 2),
            "ratio": round(statistics.median(a[0] / b[0] for a, b in zip(taken[1], measured, strict=True)), 2),
            "ratio_of_work": round(
                statistics.median(count * a[1] / b[1] for a, b in zip(taken[1], measured, strict=True)), 2
            ),
            "rounds": rounds,
        }
        for count, measured in taken.items()
    ]
    record("preparation", rows, device("cpu"))


if __name__ == "__main__":
    main()

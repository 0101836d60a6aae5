"""The table of results in README.md, made from `results/*.csv`.

python benchmarks/summary.py            rewrites the part of README.md between the two comments
python benchmarks/summary.py --check    says whether that would change it; exit 1 if so
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- results: python benchmarks/summary.py -->", "<!-- end of results -->"
NOT_BENCHMARKS = ("table4",)
"""Results of other commands that lie beside those of the scripts."""

Row = dict[str, str]


@dataclass(frozen=True)
class Benchmark:
    """A line of the table.

    Attributes:
        script: its name, without `.py`.
        what: what is held against what.
        goal: what the ratio should be.
        measured: from the rows of a result to its numbers.
    """

    script: str
    what: str
    goal: str
    measured: Callable[[Sequence[Row]], str]


def _held(value: str, least: float = 0.0, most: float = math.inf) -> str:
    """Show a number, and whether it misses its goal."""
    return value if least <= float(value) <= most else f"{value} *missed*"


def _each(
    value: str, label: str, least: float = 0.0, most: float = math.inf, **only: str
) -> Callable[[Sequence[Row]], str]:
    """Show `value` of each row where the columns `only` say so, with `label`: a text with columns in braces.

    The goal is between `least` and `most`.
    """

    def measured(rows: Sequence[Row]) -> str:
        chosen = [row for row in rows if all(row[column] == wanted for column, wanted in only.items())]
        if not chosen:
            raise SystemExit(f"no row with {only} in a result")
        return ", ".join(f"{_held(row[value], least, most)} {label.format(**row)}".strip() for row in chosen)

    return measured


def _recall(rows: Sequence[Row]) -> str:
    parts = []
    for name, column in (("neural-motifs", "motifs_ratio"), ("lean", "lean_ratio")):
        of_each = [
            "-".join(
                dict.fromkeys(f"{value:.0f}" for value in sorted(float(row[column]) for row in rows if row["k"] == k))
            )
            for k in ("100", "5000")
        ]
        parts.append(f"{name}: {', '.join(of_each)}")
    return "; ".join(parts)


def _rivals(rows: Sequence[Row]) -> str:
    evaluators = [row for row in rows if row["subject"] == "evaluator" and row["size"] == "coco val2017"]
    losses = [row for row in rows if row["subject"] == "loss"]
    parts = [f"{row['contestant']} {row['version']}: {row['time_over_ours']}" for row in evaluators[1:]]
    parts += [f"{row['contestant']}: {row['time_over_ours']} and {row['memory_over_ours']}" for row in losses[1:]]
    return "; ".join(parts)


BENCHMARKS = (
    Benchmark(
        "minibatch_training",
        "`minibatch` ResNet-20 on CIFAR-10, batch 128, against the usual loop (torchvision data set, per-image "
        "transforms, DataLoader with a worker a core, NCHW, eager float32)",
        "1.25 × float32, 2.0 × bf16, 2.2 × bf16 + compile",
        lambda rows: ", ".join(
            f"{_held(row['ratio'], least=goal)} {row['variant']}"
            for row, goal in zip(rows[1:], (1.25, 2.0, 2.2), strict=True)
        ),
    ),
    Benchmark(
        "affinity_cost",
        "an epoch with L_G ÷ without",
        "1.01 (paper, ResNet-110 on a Titan XP: 1.035)",
        _each("ratio", "{precision}", most=1.01),
    ),
    Benchmark(
        "bf16_cpu",
        "CPU-seconds of a ResNet-20 training step: bf16 ÷ float32, by whether the processor has bf16 instructions",
        "below 1 with, any without",
        lambda rows: f"{rows[1]['seconds_over_float32']} (bf16 instructions: {rows[1]['bf16_instructions']})",
    ),
    Benchmark(
        "startup",
        "`affsup --help` ÷ importing typer and rich",
        "2",
        lambda rows: _each("ratio_to_typer_and_rich", "`{call}`", most=2)(
            [row for row in rows if "--help" in row["call"]]
        ),
    ),
    Benchmark(
        "relationship_recall",
        "relationship recall of an image of 300 proposals: the scene-graph evaluator of neural-motifs, and a lean "
        "NumPy one that compares the K first pairs alone, ÷ ours, one thread; K = 100, K = 5,000",
        "20, 100",
        _recall,
    ),
    Benchmark(
        "detection_precision",
        "mAP of VOC-sized and COCO-sized detections from arrays: `COCOeval` as everyone calls it, and the same metric "
        "of ours with pycocotools, ÷ ours, one thread",
        "20",
        lambda rows: ", ".join(
            f"{_held(row['pycocotools_ratio'], least=20)} and {row['reference_ratio']} {row['size']} "
            f"({row['affsup_s']} s)"
            for row in rows
        ),
    ),
    Benchmark(
        "large_graphs",
        "L_G as an N × N matrix ÷ in tiles, time and memory, forward and backward, d = 64",
        "6 and 40 at N = 8,192, 10 at 16,384",
        lambda rows: ", ".join(
            f"{_held(row['time_over_tiles'], least=6 if row['entities'] == '8192' else 10)} and "
            f"{_held(row['memory_over_tiles'], least=40)} at {int(row['entities']):,}"
            for row in rows
            if row["variant"] == "matrix" and int(row["entities"]) > 1024
        ),
    ),
    Benchmark(
        "rivals",
        "the newest of what others offer ÷ ours, one thread, processor time: COCO evaluators from arrays, COCO-sized; "
        "SupCon forward and backward ÷ L_G in tiles, N = 8,192, time and memory",
        "–",
        _rivals,
    ),
    Benchmark(
        "relation_supervision",
        "L_G (target, M, loss, forward and backward) ÷ a relnet training step, two images at full size, 300 proposals",
        "0.01 (paper, ResNet-101: 0.033)",
        _each(
            "l_g_share",
            "({arch}, a step {step_seconds} s; the data path gives {images_a_second_of_data} images a second)",
            most=0.01,
        ),
    ),
    Benchmark(
        "detection_training",
        "a training step of two images, 300 proposals: torchvision's FasterRCNN on the same backbone and maps, and "
        "`relnet` with L_G, ÷ `frcnn`; with `train.compile`, and with NCHW in place of `run.channels_last`, ÷ without; "
        "on a CPU by processor time",
        "at least 1, at most 1.10 (on a GPU); –",
        lambda rows: _each("ratio", "{what}")(rows) + " ({arch}, {image}, frcnn {frcnn_seconds} s)".format(**rows[0]),
    ),
    Benchmark(
        "relation_module",
        "the relation module as released (values mapped after averaging) ÷ ours, 2 × 330 queries, 300 keys, 1024 "
        "features, forward and backward, one thread",
        "2",
        _each("ratio", "{what}", least=2, passes="forward + backward"),
    ),
    Benchmark(
        "nms",
        "`torchvision.ops.nms` of all ÷ the first 300 of 6,000, one thread",
        "30",
        _each("ratio", "({scores})", least=30, candidates="6000", keep="300"),
    ),
    Benchmark(
        "roi_align",
        "torchvision's RoIAlign ÷ two matrix products a region, forward and backward, 300 regions of 256 channels, one "
        "thread",
        "–",
        _each("ratio", "at {height} × {width}", channels="256", passes="forward + backward"),
    ),
    Benchmark(
        "checkpoint",
        "a checkpoint of 250 MB: written by the step itself ÷ copied for a thread to write; read ÷ mapped",
        "–",
        _each("ratio", "{what} ({ours_ms} ms)"),
    ),
    Benchmark(
        "vg_annotations",
        "a per-image loop over VG's annotations ÷ ours, generated at full size",
        "a minute, 1 GB",
        _each("times_faster_than_loop", "({seconds} s, {peak_mb} MB)", variant="affsup"),
    ),
    Benchmark(
        "preparation",
        "decoding Tiny ImageNet's 110,000 JPEGs, archive included: all cores ÷ one, by processor time and by clock",
        "0.9 × cores",
        lambda rows: _each(
            "ratio_of_work",
            "and {ratio} on {cores} cores ({processor_seconds} processor seconds)",
            least=0.9 * int(rows[-1]["cores"]),
        )(rows[1:]),
    ),
)


def table(folder: Path) -> str:
    """Return the table in Markdown from the results in `folder`: a line a script and kind of device.

    Raises:
        SystemExit: a result has no line here.
    """
    lines = ["| script | what against what | goal | measured | on |", "|---|---|---|---|---|"]
    left = {path.name for path in folder.glob("*.csv") if path.stem.rpartition("-")[0] not in NOT_BENCHMARKS}
    for benchmark in BENCHMARKS:
        for path in sorted(folder.glob(f"{benchmark.script}-*.csv")):
            left.discard(path.name)
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            where = rows[0]
            threads = where["threads"] + (" thread" if where["threads"] == "1" else " threads")
            on = f"{where['device']}, {threads}, {where['date']}, {where['commit']}"
            cells = (f"`{benchmark.script}.py`", benchmark.what, benchmark.goal, benchmark.measured(rows), on)
            lines.append(f"| {' | '.join(cells)} |")
    if left:
        raise SystemExit(f"{', '.join(sorted(left))}: no line in benchmarks/summary.py shows it")
    return "\n".join(lines)


def rewritten(text: str, folder: Path) -> str:
    """Return the text of a README with the table between its two comments made anew.

    Raises:
        SystemExit: the comments are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no part between {BEGIN} and {END}")
    return f"{before}{begin}\n{table(folder)}\n{end}{after}"


def main() -> None:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    readme = FOLDER / "README.md"
    stands = readme.read_text(encoding="utf-8")
    made = rewritten(stands, FOLDER / "results")
    if parser.parse_args().check:
        raise SystemExit("README.md and results/ differ: python benchmarks/summary.py" if made != stands else 0)
    readme.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

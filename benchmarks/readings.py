"""What the runs of `affsup sweep readings` recorded, an epoch a row: M, the gradient share of L_G, accuracies.

python benchmarks/readings.py RUNS OUT.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from affsup_cli.runs.index import RunIndex

FIELDS = {
    "affinity.loss": "loss",
    "affinity.features": "features",
    "affinity.diagonal": "diagonal",
    "seed": "seed",
}
METRICS = [
    *("epoch", "learning_rate", "train_class_loss", "train_affinity_loss", "train_mass", "gradient_share"),
    *("val_accuracy", "val_mass", "test_accuracy", "test_mass"),
]


def main() -> None:
    """Gather and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for run in RunIndex(arguments.runs).trained:
        fields = run.recipe.flat()
        for record in run.folder.metrics():
            rows.append(
                {
                    **{short: fields[key] for key, short in FIELDS.items()},
                    **{name: record.get(name) for name in METRICS},
                    "epochs": run.result.epochs,
                    "precision": fields["train.precision"],
                    "train_images": run.environment.data.limit or "all",
                    "device": run.environment.device_name,
                    "date": run.environment.started[:10],
                    "commit": (run.environment.commit or "unknown")[:12],
                }
            )
    pd.DataFrame(rows).to_csv(arguments.out, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()

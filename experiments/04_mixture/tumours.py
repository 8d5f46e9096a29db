"""Prepares the table of the experiment: 30 measurements of each of 569 tumours, and whether they are malignant.

    python experiments/04_mixture/tumours.py        # makes prepared/tumours

The table is scikit-learn's copy of Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic), 1993.
"""

from __future__ import annotations

import csv
import pathlib
import subprocess
import sys
import tempfile

OUTPUT = pathlib.Path("prepared/tumours")


def main() -> int:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tumours.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "tumour"])
            for row, target in zip(data.data, data.target, strict=True):
                writer.writerow([*row, data.target_names[target]])
        columns = f"--columns=facts={'+'.join(names)}:table,tumour=tumour:label"
        # A third of the rows, so that one of them does not weigh much in the accuracy.
        options = [columns, "--splits=train=2,test=1", f"--output={OUTPUT}"]
        return subprocess.run([sys.executable, "-m", "mmjax", "prepare", f"--source={path}", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())

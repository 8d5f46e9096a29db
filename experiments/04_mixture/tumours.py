"""Prepares the table of the experiment: 30 measurements per tumour and a label, malignant or benign; 569 rows.

    python experiments/04_mixture/tumours.py        # writes prepared/tumours

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
        # Test on a third of the rows, so that a single row changes the accuracy little.
        options = [columns, "--splits=train=2,test=1", f"--output={OUTPUT}"]
        return subprocess.run([sys.executable, "-m", "mmjax", "prepare", f"--source={path}", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())

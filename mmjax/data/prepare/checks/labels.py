"""Labels that a simple classifier, which never saw the row, is sure are wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmjax.data.prepare.examined import Examined, Finding

# Fewer rows of a class tell nothing about it; of more rows than the second, some teach.
_FEWEST = 10
_MOST = 20_000
_FOLDS = 5
_REPEATS = 3
# Rows whose own label is less probable do not teach the second time; those below the other are suspected then.
_DOUBTFUL = 0.2
_SUSPECTED = 0.02


def label_error(examined: Examined) -> Iterator[Finding]:
    """Rows to whose label cross-validated probabilities give less than one in fifty.

    Labels that are wrong teach what is wrong: so those that a first round doubts are left out of what the second
    learns from, and judged by it (after Northcutt, Jiang and Chuang, Confident Learning, 2021).
    """
    for column in examined.job.targets:
        names = examined.classes(column.name)
        rows = [int(row) for row in np.flatnonzero(examined.alive) if names[row] is not None]
        counts = {name: sum(names[row] == name for row in rows) for name in {names[row] for row in rows}}
        classes = sorted(str(name) for name, count in counts.items() if count >= _FEWEST)
        rows = [row for row in rows if names[row] in classes]
        if len(classes) < 2:
            continue
        labels = np.asarray([classes.index(str(names[row])) for row in rows])
        features = _features(examined, np.asarray(rows))
        if features is None:
            continue
        probabilities = cross_validated(features, labels, f"{examined.job.config.seed}")
        own = probabilities[np.arange(len(labels)), labels]
        for at in np.flatnonzero(own < _SUSPECTED):
            why = f"its {column.name} {names[rows[at]]!r} seems to be {classes[probabilities[at].argmax()]!r}"
            yield Finding(
                rows[at], "label_error", f"{why}, with probability {probabilities[at].max():.2f}", column.name
            )


def cross_validated(features: np.ndarray, labels: np.ndarray, seed: str) -> np.ndarray:
    """float [rows, classes]: what classifiers that did not learn from a row give it, doubtful labels left out."""
    first = _round(features, labels, np.ones(len(labels), bool), [f"{seed}:0"])
    certain = first[np.arange(len(labels)), labels] >= _DOUBTFUL
    # A class of which all is doubtful is kept as it is.
    for name in range(labels.max() + 1):
        if certain[labels == name].sum() < _FOLDS:
            certain[labels == name] = True
    return _round(features, labels, certain, [f"{seed}:{repeat + 1}" for repeat in range(_REPEATS)])


def _round(features: np.ndarray, labels: np.ndarray, teaches: np.ndarray, seeds: list[str]) -> np.ndarray:
    """Support vector machines with a radial kernel; their decision values, averaged over seeds, become probabilities.

    By a logistic regression, which learns from the decision values of rows that it does not judge.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    from mmjax.data.prepare.splits import parts

    shares, rows = {str(fold): 1.0 for fold in range(_FOLDS)}, np.arange(len(labels))
    decisions = np.zeros((len(labels), labels.max() + 1))
    for seed in seeds:
        folds = parts(shares, rows, [str(label) for label in labels], f"{seed}:labels")
        for fold in range(_FOLDS):
            learned = np.flatnonzero((folds != fold) & teaches)
            learned = learned[:: -(-len(learned) // _MOST)]
            model = SVC(C=3.0).fit(features[learned], labels[learned])
            values = model.decision_function(features[folds == fold])
            # Of two classes there is one value.
            values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
            decisions[folds == fold] += values / len(seeds)
    probabilities = np.zeros_like(decisions)
    folds = parts(shares, rows, [str(label) for label in labels], f"{seeds[0]}:probabilities")
    for fold in range(_FOLDS):
        learned = (folds != fold) & teaches
        model = LogisticRegression(max_iter=2000).fit(decisions[learned], labels[learned])
        probabilities[folds == fold] = model.predict_proba(decisions[folds == fold])
    return probabilities


def _features(examined: Examined, rows: np.ndarray) -> np.ndarray | None:
    """float32 [rows, n] of all inputs side by side, each of the same weight, zeros where a row lacks one."""
    parts = []
    for column in examined.job.inputs:
        numbers, values = examined.features(column.name)
        if len(numbers):
            place = np.full(examined.job.rows, -1)
            place[numbers] = np.arange(len(numbers))
            chosen = place[rows]
            values = values.astype(np.float32)
            values = (values - values.mean(axis=0)) / np.sqrt(values.var(axis=0).sum() + 1e-9)
            parts.append(np.where(chosen[:, None] >= 0, values[chosen], 0))
    return np.concatenate(parts, axis=1) if parts else None

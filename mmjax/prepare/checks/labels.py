"""Label-error detection from leave-one-out predictions.

1. Each input predicts the label of every row from the other rows, by leave-one-out ridge regression.
2. A mixture model combines the inputs: a label is wrong with some probability and then uniform over the other classes,
   otherwise it follows the product of the inputs' predictions. The weight of each input and the error rate are fitted
   to the labels (MAP). Uninformative inputs get a weight near 0; if all inputs are uninformative, nothing is reported.
3. A confusion matrix refines the posterior, estimated by EM from the rows whose class is predicted confidently (after
   Dawid and Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979). It detects
   systematic errors: if a fifth of a class has the same wrong label, the predictions only look uncertain.
4. Rows with doubtful labels are excluded from training, and steps 1 to 3 repeat (after Northcutt, Jiang and Chuang,
   Confident Learning, 2021).

No threshold is tuned to one kind of data.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.data.stable_rng import stable_rng
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.leave_one_out import LeaveOneOutRidge

# Classes with fewer rows are not checked. More rows than the maximum are split into random parts.
_MIN_CLASS_ROWS = 10
_MAX_ROWS = 20_000

# Label-error posterior at or above which a row is excluded from training in the next round, and the number of rounds.
_MAX_TRAIN_POSTERIOR = 0.3
_ROUNDS = 6
# Posterior above which a label is reported. It is below 0.5 because the mixture underestimates it: wrong labels are
# partly attributed to weak predictions. On image and audio digits with 4 % wrong labels, misses and false alarms are
# about equal.
_REPORT_POSTERIOR = 0.35

# Priors of the mixture. The error rate r has the log density a·log(r) + b·log(1 - r), with mode 0.1.
_ERROR_RATE_PRIOR = (1.0, 9.0)
_MAX_ERROR_RATE = 0.45
# Mean and standard deviation of the log of the largest weight. If one input separates all classes, wrong labels and
# weak predictions explain the data equally well at any number of rows, so the prior's strength grows by
# `_WEIGHT_PRIOR_PER_ROW` per row.
_LOG_WEIGHT_PRIOR = (2.5, 0.5)
_WEIGHT_PRIOR_PER_ROW = 0.01
# Assumed probability that an input belongs to another row. It keeps any single input from ruling out a class.
_MISMATCH_RATE = 0.001
# Bounds of the log weights (beyond them softmax saturates), of the class-frequency exponent and of the rate's logit.
_LOG_WEIGHT_BOUNDS, _FREQUENCY_BOUNDS, _LOGIT_BOUNDS = (-7.0, 7.0), (-3.0, 3.0), (-12.0, 5.0)
# Initial values (total weight, logit of the error rate): the loss can have one minimum with few label errors and
# another with many.
_STARTS = ((8, -2), (20, -1))

# Minimum fraction of the explainable label entropy that the inputs must explain. Explainable entropy is the entropy of
# the labels minus that of the label noise. Below the minimum, label errors cannot be told from similar
# classes.
_MIN_EXPLAINED = 0.85

# Prior of the confusion matrix: uniform errors, weighted like this many rows per class. The error rate has a minimum,
# since EM cannot raise a probability of exactly 0.
_CONFUSION_PRIOR = 100
_MIN_ERROR_RATE = 1e-4
_EM_STEPS = 10
# Class probability above which a row is used for EM: in ambiguous rows, similar classes would look like confusions.
_MIN_CONFIDENCE = 0.5
# Minimum expected count of a confusion (class, label); entries below it are set to the prior. Lower counts may be due
# to chance, and would flag correctly labelled digits that resemble another digit.
_MIN_CONFUSED_ROWS = 5

_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """Rows with one label, restricted to classes with enough rows, and their input features.

    Attributes:
      name: name of the label.
      classes: class names.
      rows: row indices, int64 [n].
      labels: class indices, int64 [n].
      inputs: (name, present bool [n], features float [present rows, m]) of each input with features.
    """

    name: str
    classes: list[str]
    rows: np.ndarray
    labels: np.ndarray
    inputs: list[tuple[str, np.ndarray, np.ndarray]]


def label_error(examined: Examined) -> Iterator[Finding]:
    """Finds rows whose label is probably wrong."""
    judged = False
    for part in labelled_rows(examined):
        judged = True
        features = [(present, values) for _, present, values in part.inputs]
        posterior, probabilities = label_error_posterior(features, part.labels, len(part.classes))
        for index in np.flatnonzero(posterior > _REPORT_POSTERIOR):
            label, predicted = part.classes[part.labels[index]], part.classes[probabilities[index].argmax()]
            why = f"{part.name} {label!r} is wrong with probability {posterior[index]:.2f}; predicted {predicted!r}"
            yield Finding(int(part.rows[index]), "label_error", why, part.name)
        if not posterior.any():
            names = " and ".join(name for name, *_ in part.inputs)
            examined.note_not_judged("label_error", f"{names} predict {part.name} too weakly")
    if not judged and any(column.kind == "label" for column in examined.job.targets):
        examined.note_not_judged("label_error", f"no label has two classes with {_MIN_CLASS_ROWS} rows or more")


def labelled_rows(examined: Examined) -> Iterator[LabelledRows]:
    """Yields the rows of each label with enough rows per class, in parts that fit into memory."""
    for column in examined.job.targets:
        names = examined.classes(column.name)
        rows = np.asarray([row for row in np.flatnonzero(examined.alive) if names[row] is not None], np.int64)
        counts = collections.Counter(names[row] for row in rows)
        classes = sorted(str(name) for name, count in counts.items() if count >= _MIN_CLASS_ROWS)
        rows = np.asarray([row for row in rows if counts[names[row]] >= _MIN_CLASS_ROWS], np.int64)
        if len(classes) < 2:
            continue
        labels = np.searchsorted(classes, [str(names[row]) for row in rows])
        # Shuffle first, since sources often list rows class by class: each part is then a sample of all classes.
        order = np.argsort(stable_rng(f"{column.name}:parts".encode()).random(len(rows)), kind="stable")
        for part in map(np.sort, np.array_split(order, -(-len(rows) // _MAX_ROWS))):
            if inputs := _inputs(examined, rows[part]):
                yield LabelledRows(column.name, classes, rows[part], labels[part], inputs)


def label_error_posterior(
    features: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior probability of a label error [rows], and class probabilities from the inputs alone [rows, classes].

    Args:
      features: per input, (present bool [rows], features float [present rows, n]).
      labels: class indices, int [rows].
      classes: number of classes.
    """
    targets = np.eye(classes)[labels]
    inputs = [(present, LeaveOneOutRidge(values)) for present, values in features]
    train_mask = np.ones(len(labels), bool)
    for _ in range(_ROUNDS):
        predictions = np.zeros((len(inputs), len(labels), classes))
        for index, (present, ridge) in enumerate(inputs):
            if train_mask[present].any():
                predictions[index, present] = ridge.predict(targets[present], train_mask[present])
        posterior, probabilities = _fit_mixture(predictions, labels)
        trusted = posterior < _MAX_TRAIN_POSTERIOR
        # A class with too few trusted rows trains on all of its rows.
        trusted |= np.bincount(labels, trusted, minlength=classes)[labels] < _MIN_CLASS_ROWS / 2
        if (trusted == train_mask).all():
            break
        train_mask = trusted
    return posterior, probabilities


def _fit_mixture(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits the mixture to `predictions` [inputs, rows, classes]. Returns the same as `label_error_posterior`."""
    import scipy.optimize

    rows, (inputs, _, classes) = np.arange(len(labels)), predictions.shape
    log_frequency = np.log1p(np.bincount(labels, minlength=classes))
    log_frequency -= log_frequency.mean()

    # Patterns of present inputs [inputs, patterns], and the fraction of rows with each.
    patterns, counts = np.unique(predictions.any(axis=2), axis=1, return_counts=True)
    nonempty = patterns.any(axis=0)
    patterns, fractions = patterns[:, nonempty], counts[nonempty] / len(labels)

    def likelihoods(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(label, correct) and P(label, wrong) of each row's label [rows], and class probabilities [rows, classes]."""
        *log_weights, exponent, logit = parameters
        rate = _MAX_ERROR_RATE / (1 + np.exp(-logit))
        # Ridge regression shrinks predictions of rare classes more; the exponent corrects for it.
        logits = exponent * log_frequency + np.zeros(predictions.shape[1:])
        for log_weight, predicted in zip(log_weights, predictions, strict=True):
            logits += np.log((1 - _MISMATCH_RATE) * _softmax(np.exp(log_weight) * predicted) + _MISMATCH_RATE / classes)
        probabilities = _softmax(logits)
        of_label = probabilities[rows, labels]
        return (1 - rate) * of_label, rate * (1 - of_label) / (classes - 1), probabilities

    def loss(parameters: np.ndarray) -> float:
        """Negative log posterior of the parameters, per row."""
        correct, wrong, _ = likelihoods(parameters)
        rate = _MAX_ERROR_RATE / (1 + np.exp(-parameters[-1]))
        a, b = _ERROR_RATE_PRIOR
        prior = a * np.log(rate) + b * np.log(1 - rate) - 0.5 * parameters[-2] ** 2
        # For each pattern, the prior applies to the largest weight among its present inputs.
        largest = np.where(patterns, parameters[:-2, None], -np.inf).max(axis=0)
        penalty = 0.5 * float(fractions @ np.square((largest - _LOG_WEIGHT_PRIOR[0]) / _LOG_WEIGHT_PRIOR[1]))
        prior -= penalty * (1 + _WEIGHT_PRIOR_PER_ROW * len(labels))
        return -float(np.log(np.maximum(correct + wrong, _TINY)).sum() + prior) / len(labels)

    starts = [[*[np.log(weight / inputs)] * inputs, 0.0, logit] for weight, logit in _STARTS]
    bounds = [_LOG_WEIGHT_BOUNDS] * inputs + [_FREQUENCY_BOUNDS, _LOGIT_BOUNDS]
    fits = [scipy.optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    correct, wrong, probabilities = likelihoods(min(fits, key=lambda fit: fit.fun).x)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    entropy = -(shares * np.log(np.maximum(shares, _TINY))).sum()
    likelihood = np.maximum(correct + wrong, _TINY)
    # Information of the inputs about the label, and entropy of uniform label noise, in nats per row.
    information = entropy + np.log(likelihood).mean()
    rate = (wrong / likelihood).mean()
    noise = -(rate * np.log(rate / (classes - 1)) + (1 - rate) * np.log(1 - rate)) if 0 < rate < 1 else 0.0
    if information <= _MIN_EXPLAINED * max(0.0, entropy - noise):
        return np.zeros(len(labels)), probabilities
    return _confusion_posterior(probabilities, labels, float(rate)), probabilities


def _confusion_posterior(probabilities: np.ndarray, labels: np.ndarray, rate: float) -> np.ndarray:
    """Posterior of a label error [rows] under a confusion matrix, which is estimated by EM.

    Args:
      probabilities: class probabilities from the inputs [rows, classes].
      labels: class indices [rows].
      rate: error rate under uniform errors.
    """
    rows, classes = probabilities.shape
    rate = max(_MIN_ERROR_RATE, rate)
    uniform = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(uniform, 1 - rate)
    one_hot = np.eye(classes)[labels]
    confident = probabilities.max(axis=1, keepdims=True) > _MIN_CONFIDENCE
    # P(label | class), [class, label].
    confusion = uniform
    for _ in range(_EM_STEPS):
        counts = (confident * _class_posterior(probabilities, confusion, labels)).T @ one_hot
        confusion = (counts + _CONFUSION_PRIOR * uniform) / (counts.sum(axis=1, keepdims=True) + _CONFUSION_PRIOR)
    confusion = np.where((counts < _MIN_CONFUSED_ROWS) & ~np.eye(classes, dtype=bool), uniform, confusion)
    return 1 - _class_posterior(probabilities, confusion, labels)[np.arange(rows), labels]


def _class_posterior(probabilities: np.ndarray, confusion: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Posterior of the true class [rows, classes], given the inputs and the label."""
    joint = probabilities * confusion.T[labels]
    return joint / np.maximum(joint.sum(axis=1, keepdims=True), _TINY)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _inputs(examined: Examined, rows: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Features of `rows` for `LabelledRows.inputs`, without inputs that have too few values."""
    inputs = []
    for column in examined.job.inputs:
        name = column.name
        values = examined.job.kinds[name].column_features(examined.measures[name], examined.categories[name])
        if values is not None:
            present = examined.present[name][rows]
            features = values[rows[present]]
        else:
            present, features = features_of(examined, name, rows)
        if len(features) >= _MIN_CLASS_ROWS and features.shape[1]:
            inputs.append((name, present, features))
    return inputs


def features_of(examined: Examined, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask bool [rows] of the rows that have features of an input, and the features [masked rows, n]."""
    indices, features = examined.features(name)
    position = np.full(examined.job.num_rows, -1)
    position[indices] = np.arange(len(indices))
    present = position[rows] >= 0
    return present, features[position[rows][present]]

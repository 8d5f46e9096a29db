"""Labels that are probably wrong, by what all other rows say of each.

Each input alone predicts the label of a row from all other rows. A mixture then says what came about how: with some
probability somebody chose another class, and else the class is as probable as the predictions of all inputs together
make it. How much each input is to be believed, and how many labels are wrong, are those that make the labels most
probable; a label is suspected if it is about as probably wrong as right. No threshold is made for one kind of data, and
an input that says nothing of the label weighs little. Where no input says anything, nothing is suspected.

At first a wrong class is any other one. But who takes one class for another does so time and again, and where a fifth
of a class bears the same wrong label, that looks like what the predictions are unsure of. So which class is given which
label, and how often, is then learnt from the rows of which the predictions are sure (after Dawid and Skene, Maximum
Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979).

Labels that are wrong teach what is wrong: those that a round doubts do not teach in the next (after Northcutt, Jiang
and Chuang, Confident Learning, 2021).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmjax.data.stable_rng import stable_rng
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.leave_one_out import LeaveOneOutRidge

# Fewer rows of a class tell nothing about it; more rows than the second are judged in parts.
_FEWEST = 10
_MOST = 20_000
_ROUNDS = 6
_DOUBTFUL = 0.3
# Half would mean "rather wrong than right", were the mixture not cautious: it also explains a wrong label by a blunt
# prediction. On digits seen or heard, with one label in 25 wrong, about as many are missed as are accused here.
_SUSPECTED = 0.35
# What to believe before the data says it, as strong as a few rows. Of the labels one in ten may be wrong, by a beta
# distribution, and rare classes need no correction. Predictions are sharp: the logarithm of the largest weight has this
# mean and deviation. Where one input tells all classes apart, wrong labels and blunt predictions explain the same data
# equally well, however many rows there are; so this counts with a share of the rows.
_WRONG_PRIOR = (1.0, 9.0)
_WEIGHT_PRIOR = (2.5, 0.5)
_WEIGHT_STRENGTH = 0.01
_MOST_WRONG = 0.45
# How often a class is given each label: any other one equally often, believed as much as this many rows are. Not never,
# as what never happens cannot be learnt to happen.
_CONFUSED_PRIOR = 100
_LEAST_WRONG = 1e-4
_CONFUSED_ROUNDS = 10
# A row counts where the inputs give one class at least this much. Of others it is not known what they are, and classes
# that merely look alike would seem to be mistaken for one another.
_SURE = 0.5
# Fewer rows of a class that bear the same wrong label are chance, and tell nothing of others: believed, they accuse
# rightly labelled digits that look like another.
_FEWEST_CONFUSED = 5
# How often an input is that of another row.
_ANOTHER = 0.001
# Of the entropy of the labels that inputs could explain which tell all classes apart, where as many labels are wrong as
# here. Inputs that explain less leave open whether a label is wrong or its class looks like another.
_EXPLAINED = 0.85


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Rows with a label, of classes that have enough of them, and what their inputs are.

    Attributes:
      name: of the label.
      classes: their names.
      rows: int64 [n], their numbers.
      labels: int64 [n], each the number of a class.
      inputs: (name, bool [n] which rows have it, float [those rows, m] its features) of each input that has features.
    """

    name: str
    classes: list[str]
    rows: np.ndarray
    labels: np.ndarray
    inputs: list[tuple[str, np.ndarray, np.ndarray]]


def label_error(examined: Examined) -> Iterator[Finding]:
    """Rows whose label is about as probably wrong as right, or more."""
    judged = False
    for found in labelled(examined):
        judged = True
        features = [(there, values) for _, there, values in found.inputs]
        wrong, probabilities = suspicions(features, found.labels, len(found.classes))
        for at in np.flatnonzero(wrong > _SUSPECTED):
            label, seems = found.classes[found.labels[at]], found.classes[probabilities[at].argmax()]
            why = f"its {found.name} {label!r} seems to be {seems!r}, with probability {wrong[at]:.2f}"
            yield Finding(int(found.rows[at]), "label_error", why, found.name)
        if not wrong.any():
            names = " and ".join(name for name, *_ in found.inputs)
            examined.could_not_judge("label_error", f"{names} tell too little of {found.name}")
    if not judged and any(column.kind == "label" for column in examined.job.targets):
        examined.could_not_judge("label_error", f"no label has two classes of {_FEWEST} rows or more")


def labelled(examined: Examined) -> Iterator[Labelled]:
    """What can be judged by labels: each label, in parts of rows that fit into memory."""
    for column in examined.job.targets:
        names = examined.classes(column.name)
        rows = np.asarray([row for row in np.flatnonzero(examined.alive) if names[row] is not None], np.int64)
        counts = collections.Counter(names[row] for row in rows)
        classes = sorted(str(name) for name, count in counts.items() if count >= _FEWEST)
        rows = np.asarray([row for row in rows if counts[names[row]] >= _FEWEST], np.int64)
        if len(classes) < 2:
            continue
        labels = np.searchsorted(classes, [str(names[row]) for row in rows])
        # Sources often list class by class: each part is a fair sample of all.
        order = np.argsort(stable_rng(f"{column.name}:parts".encode()).random(len(rows)), kind="stable")
        for part in map(np.sort, np.array_split(order, -(-len(rows) // _MOST))):
            if inputs := _inputs(examined, rows[part]):
                yield Labelled(column.name, classes, rows[part], labels[part], inputs)


def suspicions(
    features: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The probability that each label is wrong [rows], and that of each class without regard to it [rows, classes].

    Args:
      features: of each input, (bool [rows], which rows have it; float [those rows, n]).
      labels: int [rows], each less than `classes`.
    """
    targets = np.eye(classes)[labels]
    inputs = [(there, LeaveOneOutRidge(values)) for there, values in features]
    train_mask = np.ones(len(labels), bool)
    for _ in range(_ROUNDS):
        evidence = np.zeros((len(inputs), len(labels), classes))
        for at, (there, leave_one_out) in enumerate(inputs):
            if train_mask[there].any():
                evidence[at, there] = leave_one_out.predict(targets[there], train_mask[there])
        wrong, probabilities = _judge(evidence, labels)
        certain = wrong < _DOUBTFUL
        # A class of which all is doubtful teaches as it is.
        certain |= np.bincount(labels, certain, minlength=classes)[labels] < _FEWEST / 2
        if (certain == train_mask).all():
            break
        train_mask = certain
    return wrong, probabilities


def _judge(evidence: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits the mixture to predictions [inputs, rows, classes] of labels [rows]; the same two arrays as above."""
    import scipy.optimize

    rows, classes = np.arange(len(labels)), evidence.shape[2]
    frequency = np.log1p(np.bincount(labels, minlength=classes))
    frequency -= frequency.mean()

    # Which inputs rows have, and how many rows have just these.
    patterns, counts = np.unique(evidence.any(axis=2), axis=1, return_counts=True)
    some = patterns.any(axis=0)
    patterns, common = patterns[:, some], counts[some] / len(labels)

    def explained(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How probable each label came about rightly and wrongly, and the classes' probabilities."""
        *weights, rare, odds = values
        rate = _MOST_WRONG / (1 + np.exp(-odds))
        # Regression draws what it predicts of rare classes towards nothing, more than that of others.
        logits = rare * frequency + np.zeros(evidence.shape[1:])
        for weight, predicted in zip(weights, evidence, strict=True):
            # An input may be that of another row: none alone rules a class out.
            logits += np.log((1 - _ANOTHER) * _softmax(np.exp(weight) * predicted) + _ANOTHER / classes)
        probabilities = _softmax(logits)
        own = probabilities[rows, labels]
        return (1 - rate) * own, rate * (1 - own) / (classes - 1), probabilities

    def surprise(values: np.ndarray) -> float:
        right, wrong, _ = explained(values)
        rate = _MOST_WRONG / (1 + np.exp(-values[-1]))
        prior = _WRONG_PRIOR[0] * np.log(rate) + _WRONG_PRIOR[1] * np.log(1 - rate) - 0.5 * values[-2] ** 2
        # Of the inputs that a row has, one is sharp.
        largest = np.where(patterns, values[:-2, None], -np.inf).max(axis=0)
        blunt = 0.5 * float(common @ np.square((largest - _WEIGHT_PRIOR[0]) / _WEIGHT_PRIOR[1]))
        prior -= blunt * (1 + _WEIGHT_STRENGTH * len(labels))
        return -float(np.log(np.maximum(right + wrong, 1e-30)).sum() + prior) / len(labels)

    # From two sides, as there may be two valleys: most labels are right, or many are wrong.
    starts = [[*[np.log(weight / len(evidence))] * len(evidence), 0.0, odds] for weight, odds in ((8, -2), (20, -1))]
    # Weights from nothing to where exp() has long made them certainty.
    bounds = [(-7.0, 7.0)] * len(evidence) + [(-3.0, 3.0), (-12.0, 5.0)]
    fits = [scipy.optimize.minimize(surprise, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    right, wrong, probabilities = explained(min(fits, key=lambda fit: fit.fun).x)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum()
    told = entropy + np.log(np.maximum(right + wrong, 1e-30)).mean()
    wrong = wrong / np.maximum(right + wrong, 1e-30)
    rate = wrong.mean()
    chance = -(rate * np.log(rate / (classes - 1)) + (1 - rate) * np.log(1 - rate)) if 0 < rate < 1 else 0.0
    if told <= _EXPLAINED * max(0.0, entropy - chance):
        return np.zeros(len(labels)), probabilities
    return _confused(probabilities, labels, float(wrong.mean())), probabilities


def _confused(probabilities: np.ndarray, labels: np.ndarray, rate: float) -> np.ndarray:
    """The probability that each label is wrong, where some classes are taken for some others more often than for any.

    Args:
      probabilities: [rows, classes], of each class by all that the inputs say.
      labels: [rows].
      rate: how many labels are wrong, were each other class as often given.
    """
    rows, classes = probabilities.shape
    rate = max(_LEAST_WRONG, rate)
    evenly = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(evenly, 1 - rate)
    given = np.eye(classes)[labels]
    sure = probabilities.max(axis=1, keepdims=True) > _SURE
    # How often each class [first axis] is given each label.
    shares = evenly
    for _ in range(_CONFUSED_ROUNDS):
        counts = (sure * _true(probabilities, shares, labels)).T @ given
        shares = (counts + _CONFUSED_PRIOR * evenly) / (counts.sum(axis=1, keepdims=True) + _CONFUSED_PRIOR)
    shares = np.where((counts < _FEWEST_CONFUSED) & ~np.eye(classes, dtype=bool), evenly, shares)
    return 1 - _true(probabilities, shares, labels)[np.arange(rows), labels]


def _true(probabilities: np.ndarray, shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of each class to be the true one [rows, classes], given the label too."""
    both = probabilities * shares.T[labels]
    return both / np.maximum(both.sum(axis=1, keepdims=True), 1e-30)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _inputs(examined: Examined, rows: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    found = []
    for column in examined.job.inputs:
        name = column.name
        described = examined.job.kinds[name].described(examined.numbers[name], examined.words[name])
        if described is not None:
            there = examined.present[name][rows]
            values = described[rows[there]]
        else:
            numbers, features = examined.features(name)
            place = np.full(examined.job.rows, -1)
            place[numbers] = np.arange(len(numbers))
            there = place[rows] >= 0
            values = features[place[rows][there]]
        if len(values) >= _FEWEST and values.shape[1]:
            found.append((name, there, values))
    return found

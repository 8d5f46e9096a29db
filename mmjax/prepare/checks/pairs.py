"""Inputs of one row that do not belong together, as where a file was given the name of another.

With a model that was trained to tell pairs from other pairs (`--alignment`): how much more probable it holds the two
inputs of a row than either with the inputs of other rows. What it confuses time and again is learnt from the other rows
wherever they tell more of pairs than the model by itself. Where there is a label: which input contradicts the label,
while another one agrees with it. Where neither can be told, nothing is suspected, and the report says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmjax.prepare.checks.labels import Labelled, labelled, suspicions
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.leave_one_out import LeaveOneOutRidge

CHECK = "misaligned"

_SUSPECTED = 0.5
_AGREES = 0.05
# Other rows that the two inputs of each are compared with, and how many rows are at least needed.
_OTHERS = 1000
_FEWEST = 50
_MOST = 20_000
# In nats a row: a model that tells less about pairs cannot say which are wrong.
_TOLD = 0.1


def misaligned(examined: Examined) -> Iterator[Finding]:
    """Rows of which one input is more probably that of another row than not."""
    if len(examined.job.inputs) < 2:
        return
    by_label: dict[int, Finding] = {}
    agreeing: set[int] = set()
    told = examined.aligner is not None
    for found in labelled(examined):
        told = True
        contradicting, agree = _by_label(found)
        by_label |= {finding.row: finding for finding in contradicting}
        agreeing |= agree
    if examined.aligner is not None:
        # Either knows what the other one does not: one that is sure that nothing is wrong is believed.
        by_model, sure = _by_model(examined)
        by_label = {row: finding for row, finding in by_label.items() if row not in sure and row not in by_model}
        yield from (finding for row, finding in by_model.items() if row not in agreeing)
    yield from by_label.values()
    if not told:
        needed = "a model, --alignment=RUN, or a label with enough rows of two classes"
        examined.note_not_judged(CHECK, f"it needs {needed}")


def _by_label(found: Labelled) -> tuple[list[Finding], set[int]]:
    """Rows of which an input contradicts the label while another agrees with it, and those where all inputs agree."""
    judged = np.full((len(found.inputs), len(found.rows)), np.nan)
    for at, (_, there, values) in enumerate(found.inputs):
        wrong, _ = suspicions([(np.ones(there.sum(), bool), values)], found.labels[there], len(found.classes))
        # Where the input says nothing of the label, nothing is known.
        if wrong.any():
            judged[at, there] = wrong
    agrees, contradicting = judged < _AGREES, []
    for at, (name, _, _) in enumerate(found.inputs):
        for row in np.flatnonzero((judged[at] > _SUSPECTED) & agrees.any(axis=0)):
            label = found.classes[found.labels[row]]
            why = f"its {name} contradicts its {found.name} {label!r}, and another input agrees with it"
            why = f"{why}, with probability {judged[at, row]:.2f}"
            contradicting.append(Finding(int(found.rows[row]), CHECK, why, name))
    everywhere = agrees.all(axis=0) & (len(found.inputs) > 1)
    return contradicting, set(found.rows[everywhere].tolist())


def _by_model(examined: Examined) -> tuple[dict[int, Finding], set[int]]:
    """Rows whose inputs do not belong together, and those whose inputs surely do."""
    findings: dict[int, Finding] = {}
    sure: set[int] = set()
    for (first, second), (rows, one, other) in examined.pair_embeddings().items():
        if len(rows) < _FEWEST:
            examined.note_not_judged(
                CHECK, f"{len(rows)} rows have both {first} and {second}; at least {_FEWEST} are needed"
            )
            continue
        # In parts that fit into memory, each of them from everywhere.
        parts = -(-len(rows) // _MOST)
        for start in range(parts):
            part = np.arange(start, len(rows), parts)
            known = [_features(examined, name, rows[part]) for name in (first, second)]
            candidates = [(one[part], other[part]), corrected(one[part], other[part], *known)]
            wrong, told = max((unlikely_pairs(*each) for each in candidates), key=lambda judged: judged[1])
            if told < _TOLD:
                examined.note_not_judged(CHECK, f"the model of --alignment tells too little of {first} and {second}")
                break
            sure |= set(rows[part][wrong < _AGREES].tolist())
            for at in np.flatnonzero(wrong > _SUSPECTED):
                row = int(rows[part[at]])
                why = f"its {first} and its {second} do not belong together, with probability {wrong[at]:.2f}"
                findings.setdefault(row, Finding(row, CHECK, why, first))
    return findings, sure - set(findings)


def _features(examined: Examined, name: str, rows: np.ndarray) -> np.ndarray | None:
    """What this command itself knows of an input of these rows, where it does of all."""
    numbers, values = examined.features(name)
    place = np.full(examined.job.num_rows, -1)
    place[numbers] = np.arange(len(numbers))
    return values[place[rows]] if values.size and (place[rows] >= 0).all() else None


def corrected(
    one: np.ndarray, other: np.ndarray, one_known: np.ndarray | None, other_known: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose cosine says how alike a partner is to what all other rows let one expect.

    A model that takes one voice's "six" for a "three" does so in many rows, and these know what belongs to it.

    Args:
      one, other: float [rows, width], each row of length 1.
      one_known, other_known: float [rows, n], what else is known of each input, if anything.

    Returns:
      Two arrays [rows, sides * width]; the cosine is the mean over both sides and all that is known of each.
    """
    everyone = np.ones(len(one), bool)

    def expected(features: np.ndarray, partners: np.ndarray) -> np.ndarray:
        values = LeaveOneOutRidge(features).predict(partners.astype(np.float64), everyone)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)

    pairs = [(expected(features, other), other) for features in (one, one_known) if features is not None]
    pairs += [(one, expected(features, one)) for features in (other, other_known) if features is not None]
    first, second = (np.concatenate(sides, axis=1) / np.sqrt(len(pairs)) for sides in zip(*pairs, strict=True))
    return first.astype(np.float32), second.astype(np.float32)


def unlikely_pairs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
    """How probable it is that each pair of embeddings is none, and how much they tell of pairs, in nats a pair.

    How much more probable a partner is than a random one, is the share of exp(scale * cosine) that it has of the mean
    over others (van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018), here
    the geometric mean of both directions, at the scale at which the pairs are most probable. What this is for pairs
    that are none is known: it is what partners drawn at random have, some of which belong together by chance.

    Args:
      one, other: float [rows, width], each row of length 1.
    """
    import scipy.optimize

    count = len(one)
    others = np.linspace(0, count - 1, min(count, _OTHERS)).astype(np.int64)
    right = np.einsum("rw,rw->r", one, other, dtype=np.float64)
    sides = [(one @ other[others].T).astype(np.float64), (other @ one[others].T).astype(np.float64)]

    def means(scale: float) -> list[np.ndarray]:
        """Of either side, the logarithm of the mean [rows] over others."""
        return [np.log(np.exp(scale * (side - 1)).mean(axis=1)) for side in sides]

    def surprise(values: np.ndarray) -> float:
        scale, rate = np.exp(values[0]), 0.5 / (1 + np.exp(-values[1]))
        first, second = means(scale)
        return -float(np.log((1 - rate) * np.exp(scale * (right - 1) - 0.5 * (first + second)) + rate).mean())

    fit = scipy.optimize.minimize(surprise, [2.0, -2.0], method="L-BFGS-B", bounds=[(-2.0, 4.0), (-12.0, 8.0)])
    scale = np.exp(fit.x[0])
    first, second = means(scale)
    pairs = scale * (right - 1) - 0.5 * (first + second)
    drawn = [
        scale * (side - 1) - 0.5 * (own[:, None] + partner[others])
        for side, own, partner in zip(sides, (first, second), (second, first), strict=True)
    ]
    off = np.arange(count)[:, None] != others
    random = np.sort(np.concatenate([values[off] for values in drawn]))
    # The share of random partners that fit at least as well: of pairs that are none, uniform between 0 and 1.
    return false_discovery(1 - np.searchsorted(random, pairs) / len(random)), -float(fit.fun)


def false_discovery(ranks: np.ndarray) -> np.ndarray:
    """The probability of each of many p-values that it came about by chance, where the others are rather small.

    It is the density of those by chance, 1 times their share, over the density of all. That share is what lies in the
    upper half, where hardly any other is (Storey, A Direct Approach to False Discovery Rates, 2002); the density is the
    slope of the least concave function above the empirical distribution (Grenander, On the Theory of Mortality
    Measurement, 1956).
    """
    order = np.sort(ranks)
    above = int((order > 0.5).sum())
    share = min(1.0, 2 * (above + 1) / len(ranks)) if above else 0.0
    places = np.concatenate([[0.0], order, [1.0]])
    heights = np.concatenate([np.arange(len(order) + 1), [len(order)]]) / len(order)
    corners = [0]
    for at in range(1, len(places)):
        while len(corners) > 1 and _turns_up(places, heights, corners[-2], corners[-1], at):
            corners.pop()
        corners.append(at)
    widths = np.maximum(np.diff(places[corners]), 1e-12)
    slopes = np.diff(heights[corners]) / widths
    density = slopes[np.clip(np.searchsorted(places[corners], ranks) - 1, 0, len(slopes) - 1)]
    return np.minimum(1.0, share / np.maximum(density, 1e-12))


def _turns_up(x: np.ndarray, y: np.ndarray, first: int, second: int, third: int) -> bool:
    """Whether the way from the second point to the third is no less steep than that from the first to the second."""
    before = (y[second] - y[first]) * (x[third] - x[second])
    return before <= (y[third] - y[second]) * (x[second] - x[first])

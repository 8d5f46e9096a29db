"""Detection of mismatched inputs within a row, for example a file under the wrong name.

Two methods are combined:

- With a contrastive model (`--alignment=RUN`): the posterior that two inputs do not form a pair, from the pair's
  InfoNCE score against the scores of random pairs. The score uses the model's embeddings, or embeddings that are
  corrected for the model's systematic errors by leave-one-out regression, whichever is more informative.
- With a label: one input contradicts the label and another agrees with it.

If neither is possible, nothing is reported, and the report gives the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmjax.prepare.checks.labels import LabelledRows, features_of, label_error_posterior, labelled_rows
from mmjax.prepare.examined import Examined, Finding
from mmjax.prepare.leave_one_out import LeaveOneOutRidge

CHECK = "misaligned"

# Mismatch posteriors: above the first, a row is reported; below the second, its inputs count as matching.
_REPORT_POSTERIOR = 0.5
_AGREE_POSTERIOR = 0.05
# With fewer rows, the model is not applied. More rows than the maximum are split into strided parts, to fit in memory.
_MIN_ROWS = 50
_MAX_ROWS = 20_000
# Number of evenly spaced rows whose inputs serve as negatives.
_NEGATIVES = 1000
# Minimum information of a model about pairs, in nats per row. Below it, mismatches cannot be detected.
_MIN_INFORMATION = 0.1
# Fit of the InfoNCE score: start and bounds of log scale and logit of the mismatch rate, and the rate's upper bound.
_START, _BOUNDS = (2.0, -2.0), ((-2.0, 4.0), (-12.0, 8.0))
_MAX_MISMATCH_RATE = 0.5

_TINY = 1e-12


def misaligned(examined: Examined) -> Iterator[Finding]:
    """Finds rows with an input that probably belongs to another row."""
    if len(examined.job.inputs) < 2:
        return
    by_label: dict[int, Finding] = {}
    agreeing: set[int] = set()
    judged = examined.aligner is not None
    for part in labelled_rows(examined):
        judged = True
        contradicting, agree = _by_label(part)
        by_label |= {finding.row: finding for finding in contradicting}
        agreeing |= agree
    if examined.aligner is not None:
        # The methods have different blind spots: a finding of one is dropped if the other is sure that the row matches.
        by_model, matching = _by_model(examined)
        by_label = {row: finding for row, finding in by_label.items() if row not in matching and row not in by_model}
        yield from (finding for row, finding in by_model.items() if row not in agreeing)
    yield from by_label.values()
    if not judged:
        examined.note_not_judged(CHECK, "needs a model (--alignment=RUN) or a label with enough rows of two classes")


def _by_label(part: LabelledRows) -> tuple[list[Finding], set[int]]:
    """Findings for inputs that contradict the label while another agrees, and the rows where all inputs agree."""
    posterior = np.full((len(part.inputs), len(part.rows)), np.nan)
    for index, (_, present, values) in enumerate(part.inputs):
        features = [(np.ones(present.sum(), bool), values)]
        wrong, _ = label_error_posterior(features, part.labels[present], len(part.classes))
        # All zeros: the input is not informative about the label.
        if wrong.any():
            posterior[index, present] = wrong
    agrees, contradicting = posterior < _AGREE_POSTERIOR, []
    for index, (name, _, _) in enumerate(part.inputs):
        for row in np.flatnonzero((posterior[index] > _REPORT_POSTERIOR) & agrees.any(axis=0)):
            label = part.classes[part.labels[row]]
            why = f"{name} contradicts {part.name} {label!r} with probability {posterior[index, row]:.2f}"
            contradicting.append(Finding(int(part.rows[row]), CHECK, why, name))
    all_agree = agrees.all(axis=0) & (len(part.inputs) > 1)
    return contradicting, set(part.rows[all_agree].tolist())


def _by_model(examined: Examined) -> tuple[dict[int, Finding], set[int]]:
    """Findings {row: finding} for pairs that the model rejects, and the rows whose pairs it confidently accepts."""
    findings: dict[int, Finding] = {}
    matching: set[int] = set()
    for (first, second), (rows, a, b) in examined.pair_embeddings().items():
        if len(rows) < _MIN_ROWS:
            problem = f"only {len(rows)} rows have both {first} and {second}; {_MIN_ROWS} are needed"
            examined.note_not_judged(CHECK, problem)
            continue
        # Strided parts, so that each one samples the whole source.
        parts = -(-len(rows) // _MAX_ROWS)
        for start in range(parts):
            part = np.arange(start, len(rows), parts)
            features = [_features(examined, name, rows[part]) for name in (first, second)]
            candidates = [(a[part], b[part]), leave_one_out_embeddings(a[part], b[part], *features)]
            scored = [mismatch_posterior(*embeddings) for embeddings in candidates]
            posterior, information = max(scored, key=lambda result: result[1])
            if information < _MIN_INFORMATION:
                examined.note_not_judged(CHECK, f"the --alignment model is not informative about {first} and {second}")
                break
            matching |= set(rows[part][posterior < _AGREE_POSTERIOR].tolist())
            for index in np.flatnonzero(posterior > _REPORT_POSTERIOR):
                row = int(rows[part[index]])
                why = f"{first} and {second} are mismatched with probability {posterior[index]:.2f}"
                findings.setdefault(row, Finding(row, CHECK, why, first))
    return findings, matching - set(findings)


def _features(examined: Examined, name: str, rows: np.ndarray) -> np.ndarray | None:
    """Features [rows, n] of an input; None unless all rows have them."""
    present, features = features_of(examined, name, rows)
    return features if features.size and present.all() else None


def leave_one_out_embeddings(
    a: np.ndarray, b: np.ndarray, a_features: np.ndarray | None, b_features: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose inner product compares each input with its leave-one-out prediction from the other input.

    This corrects systematic confusions of the model: if it hears one speaker's "six" as "three" in many rows, the
    regression learns which partner belongs to that sound.

    Args:
      a, b: unit-norm embeddings of the two inputs, float [rows, width].
      a_features, b_features: further features of the inputs, float [rows, n], or None.

    Returns:
      Two float32 arrays [rows, predictors * width]. Their inner product is the mean cosine over all predictors: both
      embeddings, and the features that are not None.
    """
    train_mask = np.ones(len(a), bool)

    def predict(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
        values = LeaveOneOutRidge(features).predict(targets.astype(np.float64), train_mask)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _TINY)

    pairs = [(predict(features, b), b) for features in (a, a_features) if features is not None]
    pairs += [(a, predict(features, a)) for features in (b, b_features) if features is not None]
    first, second = (np.concatenate(side, axis=1) / np.sqrt(len(pairs)) for side in zip(*pairs, strict=True))
    return first.astype(np.float32), second.astype(np.float32)


def mismatch_posterior(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior that each pair of embeddings is mismatched [rows], and the information about pairs in nats per row.

    The score of a pair is its InfoNCE density ratio: exp(scale * cosine) over its mean over negatives, averaged
    geometrically over both directions (van den Oord, Li and Vinyals, Representation Learning with Contrastive
    Predictive Coding, 2018). Scale and mismatch rate are fitted by maximum likelihood. Random pairs provide the null
    distribution, which includes pairs that match by chance; p-values under it give the posterior by `local_fdr`.

    Args:
      a, b: unit-norm embeddings, float [rows, width].
    """
    import scipy.optimize

    count = len(a)
    negatives = np.linspace(0, count - 1, min(count, _NEGATIVES)).astype(np.int64)
    positive = np.einsum("rw,rw->r", a, b, dtype=np.float64)
    # Cosines with the negatives [rows, negatives], a to b and b to a.
    cosines = [(a @ b[negatives].T).astype(np.float64), (b @ a[negatives].T).astype(np.float64)]

    def log_means(scale: float) -> list[np.ndarray]:
        """Log of the mean over negatives [rows], for both directions."""
        return [np.log(np.exp(scale * (cosine - 1)).mean(axis=1)) for cosine in cosines]

    def loss(parameters: np.ndarray) -> float:
        """Negative mean log likelihood of the density ratios, in nats."""
        scale, rate = np.exp(parameters[0]), _MAX_MISMATCH_RATE / (1 + np.exp(-parameters[1]))
        first, second = log_means(scale)
        ratio = np.exp(scale * (positive - 1) - 0.5 * (first + second))
        return -float(np.log((1 - rate) * ratio + rate).mean())

    fit = scipy.optimize.minimize(loss, _START, method="L-BFGS-B", bounds=_BOUNDS)
    scale = np.exp(fit.x[0])
    first, second = log_means(scale)
    scores = scale * (positive - 1) - 0.5 * (first + second)
    random_scores = [
        scale * (cosine - 1) - 0.5 * (anchor[:, None] + partner[negatives])
        for cosine, anchor, partner in zip(cosines, (first, second), (second, first), strict=True)
    ]
    off_diagonal = np.arange(count)[:, None] != negatives
    null = np.sort(np.concatenate([values[off_diagonal] for values in random_scores]))
    # p-values: fraction of random pairs that score at least as high. Uniform for mismatched pairs.
    return local_fdr(1 - np.searchsorted(null, scores) / len(null)), -float(fit.fun)


def local_fdr(p_values: np.ndarray) -> np.ndarray:
    """Local false discovery rate: the posterior of the null hypothesis for each p-value [n].

    Equals null fraction / density of all p-values, since the null density is 1. The null fraction is estimated from
    p-values above 0.5 (Storey, A Direct Approach to False Discovery Rates, 2002), the density as the slope of the least
    concave majorant of the empirical distribution (Grenander, On the Theory of Mortality Measurement, 1956).
    """
    import scipy.optimize

    above = int((p_values > 0.5).sum())
    null_fraction = min(1.0, 2 * (above + 1) / len(p_values)) if above else 0.0
    values, counts = np.unique(p_values, return_counts=True)
    widths = np.maximum(np.diff(values, prepend=0.0, append=1.0), _TINY)
    # The antitonic fit of the histogram heights is the slope of the majorant.
    heights = np.append(counts, 0) / len(p_values) / widths
    density = scipy.optimize.isotonic_regression(heights, weights=widths, increasing=False).x
    return np.minimum(1.0, null_fraction / np.maximum(density[np.searchsorted(values, p_values)], _TINY))

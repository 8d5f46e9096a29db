"""Metrics with additive states: the state of a split is exactly the sum of the states of its batches.

States of devices, microbatches and batches merge by addition; absent examples add 0. `compute` runs on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jaxtyping import Array, Float, Int

States = dict[str, metrics.Metric]
PerExample = Float[Array, " batch"]
Labels = Int[Array, " batch"]


class Additive(metrics.Metric):
    """Base class of metrics whose states merge by adding all fields."""

    def merge(self, other):
        """Adds the fields of two states."""
        return jax.tree.map(jnp.add, self, other)

    def reduce(self):
        """Sums stacked states over the leading axis."""
        return jax.tree.map(lambda x: x.sum(axis=0), self)

    def compute_values(self) -> dict[str, float]:
        """Returns {name: value}; the name "" means the state's own name. {} if the total weight is 0."""
        raise NotImplementedError


@flax.struct.dataclass
class Ratio(Additive):
    """Weighted mean: weighted sum of values / sum of weights."""

    total: Any
    weight: Any

    @classmethod
    def of(cls, values: PerExample, weights: PerExample) -> Ratio:
        """Sums values and weights over the batch; values of weight 0 must be finite."""
        return cls((values * weights).sum(dtype=jnp.float32), weights.sum(dtype=jnp.float32))

    def compute(self):
        """The weighted mean."""
        return float(self.total) / float(self.weight)

    def compute_values(self):
        return {"": self.compute()} if float(self.weight) > 0 else {}


@flax.struct.dataclass
class ClassCounts(Additive):
    """Per-class counts for macro precision, recall and F1.

    The macro average covers the classes that occur in predictions or labels, as in scikit-learn; 0 / 0 counts as 0.

    Attributes:
      hits: true positives `[classes]`.
      predicted: predictions per class `[classes]`.
      labelled: labels per class `[classes]`.
    """

    hits: Any
    predicted: Any
    labelled: Any

    @classmethod
    def of(cls, predictions: Labels, labels: Labels, weights: PerExample, classes: int) -> ClassCounts:
        """Counts class indices over the batch, weighted."""
        predicted = jax.nn.one_hot(predictions, classes) * weights[:, None]
        labelled = jax.nn.one_hot(labels, classes)
        return cls((predicted * labelled).sum(0), predicted.sum(0), (labelled * weights[:, None]).sum(0))

    def compute(self):
        """Same as `compute_values`."""
        return self.compute_values()

    def compute_values(self):
        counts = np.array([self.hits, self.predicted, self.labelled], np.float64)
        hits, predicted, labelled = counts[:, (counts[1] > 0) | (counts[2] > 0)]
        if not hits.size:
            return {}
        precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
        recall = np.divide(hits, labelled, out=np.zeros_like(hits), where=labelled > 0)
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(hits), where=total > 0)
        return {"precision": float(precision.mean()), "recall": float(recall.mean()), "f1": float(f1.mean())}


def merge(first: Any, second: Any) -> Any:
    """Adds two pytrees of states leaf by leaf."""
    return jax.tree.map(jnp.add, first, second)


def finalise(states: Mapping[str, metrics.Metric]) -> dict[str, float]:
    """Computes the metrics of all states, `{name: value}`; states of weight 0 are left out."""
    row = {}
    for name, state in states.items():
        for suffix, value in state.compute_values().items():
            row[f"{name.rpartition('/')[0]}/{suffix}" if suffix else name] = value
    return row

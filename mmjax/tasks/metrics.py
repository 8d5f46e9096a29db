"""Metrics as additive states: the state of a whole split is the sum of the states of its parts, exactly.

So devices, microbatches and batches merge by adding, and absent examples by adding 0. `compute` runs on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

States = dict[str, metrics.Metric]


class Additive(metrics.Metric):
    """A metric whose merge is the sum of all its fields."""

    def merge(self, other):
        return jax.tree.map(jnp.add, self, other)

    def reduce(self):
        return jax.tree.map(lambda x: x.sum(axis=0), self)

    def compute_values(self) -> dict[str, float]:
        """Numbers by suffix of the name ("" for the metric's own name); none where nothing was counted."""
        raise NotImplementedError


@flax.struct.dataclass
class Ratio(Additive):
    """A weighted mean: the sum of values over the sum of weights."""

    total: Any
    weight: Any

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> Ratio:
        """From one value and one weight an example; a value of weight 0 may be anything finite."""
        return cls((values * weights).sum(dtype=jnp.float32), weights.sum(dtype=jnp.float32))

    def compute(self):
        return float(self.total) / float(self.weight)

    def compute_values(self):
        return {"": self.compute()} if float(self.weight) > 0 else {}


@flax.struct.dataclass
class ClassCounts(Additive):
    """Right and wrong answers of each class, for macro precision, recall and F1.

    The mean goes over the classes that occur among answers or labels, as in scikit-learn; 0 / 0 counts as 0.
    """

    hits: Any
    predicted: Any
    labelled: Any

    @classmethod
    def of(cls, predictions: jax.Array, labels: jax.Array, weights: jax.Array, classes: int) -> ClassCounts:
        """From class indices [B] and weights [B]."""
        said = jax.nn.one_hot(predictions, classes) * weights[:, None]
        true = jax.nn.one_hot(labels, classes)
        return cls((said * true).sum(0), said.sum(0), (true * weights[:, None]).sum(0))

    def compute(self):
        return self.compute_values()

    def compute_values(self):
        hits, said, true = (np.asarray(x, np.float64) for x in (self.hits, self.predicted, self.labelled))
        seen = (said > 0) | (true > 0)
        if not seen.any():
            return {}
        hits, said, true = hits[seen], said[seen], true[seen]
        precision = np.divide(hits, said, out=np.zeros_like(hits), where=said > 0)
        recall = np.divide(hits, true, out=np.zeros_like(hits), where=true > 0)
        both = precision + recall
        f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
        return {"precision": float(precision.mean()), "recall": float(recall.mean()), "f1": float(f1.mean())}


def merge(first: Any, second: Any) -> Any:
    """Adds two trees of states."""
    return jax.tree.map(jnp.add, first, second)


def finalise(states: Mapping[str, metrics.Metric]) -> dict[str, float]:
    """Numbers by name from states by name; what counted nothing gives no row."""
    row = {}
    for name, state in states.items():
        for suffix, value in state.compute_values().items():
            row[f"{name.rpartition('/')[0]}/{suffix}" if suffix else name] = value
    return row

"""Classification of an example from tokens: cross-entropy, with accuracy, precision, recall and F1."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.config import Count, Rate
from mmjax.errors import UserError, nearest
from mmjax.layers import AttentionPooling, LayerNorm, Linear, mean_pool
from mmjax.tasks.base import Task, TaskConfig, check_reads, count_present
from mmjax.tasks.metrics import ClassCounts, Ratio, States
from mmjax.tokens import Batch, TargetSpec, Tokens


class Classification(Task):
    """Pools the tokens that it reads and tells which of the target's classes the example has.

    Targets are class indices [B], or probabilities [B, classes] (soft targets).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TaskConfig):
        """What is read and how.

        Attributes:
          reads: name of the tokens: an encoder's name, "fused", or "encoders.NAME" for what comes before the fusion.
          target: name of the dataset's target; the task's own name by default.
          pooling: the mean of the tokens, or a learned query that attends to them.
          heads: of that query.
          label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al., 2016).
        """

        reads: str = "fused"
        target: str | None = None
        pooling: Literal["mean", "attention"] = "mean"
        heads: Count = 4
        label_smoothing: Rate = 0.0

    def __init__(
        self, config: Config, name: str, widths: dict[str, int], targets: dict[str, TargetSpec], *, rngs: nnx.Rngs
    ):
        check_reads(config.reads, widths, f"tasks.{name}.reads")
        self.config, self.target = config, config.target or name
        if self.target not in targets:
            raise UserError(
                f"tasks.{name}.target", f"the data has no target {self.target!r}", nearest(self.target, targets)
            )
        self.classes = tuple(targets[self.target].classes)
        if len(self.classes) < 2:
            raise UserError(f"tasks.{name}.target", f"{self.target!r} has no classes", "choose a target with classes")
        width = widths[config.reads]
        attention = config.pooling == "attention"
        self.pool = AttentionPooling(width, config.heads, 4 * width, rngs=rngs) if attention else None
        self.norm = LayerNorm(width)
        self.head = Linear(width, len(self.classes), rngs=rngs, scale=0.1)

    @property
    def primary_metric(self) -> str:
        return "accuracy"

    def weights(self, batch: Batch) -> jax.Array:
        return batch.targets[self.target].weight * count_present(batch, self.config.reads)

    def features(self, outputs: dict[str, Tokens]) -> jax.Array:
        """Logits [B, classes], float32."""
        tokens = outputs[self.config.reads]
        pooled = mean_pool(tokens) if self.pool is None else self.pool(tokens)
        return self.head(self.norm(pooled))

    def _soft(self, batch: Batch) -> jax.Array:
        values = batch.targets[self.target].values
        return values if values.ndim == 2 else jax.nn.one_hot(values, len(self.classes))

    def losses(self, features: jax.Array, batch: Batch) -> jax.Array:
        soft = self._soft(batch)
        soft = soft * (1.0 - self.config.label_smoothing) + self.config.label_smoothing / len(self.classes)
        return -(soft * jax.nn.log_softmax(features)).sum(axis=-1)

    def metrics(self, features: jax.Array, batch: Batch) -> States:
        weights = self.weights(batch)
        predictions, labels = features.argmax(axis=-1), self._soft(batch).argmax(axis=-1)
        return {
            "accuracy": Ratio.of((predictions == labels).astype(jnp.float32), weights),
            "by_class": ClassCounts.of(predictions, labels, weights, len(self.classes)),
        }

    def predictions(self, features: jax.Array) -> list[dict[str, Any]]:
        """The most probable class, with the five most probable ones under "top"."""
        predictions = []
        for row in np.asarray(jax.nn.softmax(features, axis=-1)):
            best = np.argsort(-row, kind="stable")[:5]
            top = [{"answer": self.classes[number], "probability": float(row[number])} for number in best]
            predictions.append({**top[0], "top": top})
        return predictions

    def chance(self, batch_size: int) -> float:
        return math.log(len(self.classes))

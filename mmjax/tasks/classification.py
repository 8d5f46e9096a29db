"""Classification with cross-entropy loss; accuracy, macro precision, macro recall and macro F1."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mmjax.config import Count, Rate
from mmjax.errors import UserError, nearest
from mmjax.layers import AttentionPooling, LayerNorm, Linear, mean_pool
from mmjax.tasks.base import Task, TaskConfig, check_reads, presence
from mmjax.tasks.metrics import ClassCounts, Ratio, States
from mmjax.tokens import Batch, TargetSpec, Tokens


class Classification(Task):
    """Classifies pooled tokens with a linear head and softmax cross-entropy.

    Targets are class indices `[B]` or class probabilities `[B, classes]` (soft targets).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TaskConfig):
        """Options of `Classification`.

        Attributes:
          reads: tokens to read: "fused", an encoder's name, or "encoders.NAME" for encoder outputs before the fusion.
          target: name of the dataset's target; defaults to the task's name.
          pooling: mean pooling, or attention pooling with a learned query.
          heads: attention heads of attention pooling.
          label_smoothing: probability mass spread uniformly over all classes (Szegedy et al., Rethinking the Inception
            Architecture for Computer Vision, 2016).
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
        # Soft targets are float32 probabilities, multi-label ones uint8 flags.
        if targets[self.target].dtype == "uint8":
            problem = f"{self.target!r} is a multi-label target, which no task can learn yet"
            raise UserError(f"tasks.{name}.target", problem, "choose a target with one class per example")
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

    def weights(self, batch: Batch) -> Float[Array, " batch"]:
        return batch.targets[self.target].weight * presence(batch, self.config.reads)

    def features(self, outputs: dict[str, Tokens]) -> Float[Array, "batch classes"]:
        """Logits, float32."""
        tokens = outputs[self.config.reads]
        pooled = mean_pool(tokens) if self.pool is None else self.pool(tokens)
        return self.head(self.norm(pooled))

    def _probabilities(self, batch: Batch) -> Float[Array, "batch classes"]:
        """Target probabilities; one-hot for class indices."""
        values = batch.targets[self.target].values
        return values if values.ndim == 2 else jax.nn.one_hot(values, len(self.classes))

    def losses(self, features: Float[Array, "batch classes"], batch: Batch) -> Float[Array, " batch"]:
        """Cross-entropy with label smoothing."""
        return self._cross_entropy(features, batch, self.config.label_smoothing)

    def eval_losses(self, features: Float[Array, "batch classes"], batch: Batch) -> Float[Array, " batch"]:
        """Cross-entropy without label smoothing."""
        return self._cross_entropy(features, batch, 0.0)

    def _cross_entropy(self, features, batch: Batch, smoothing: float) -> Float[Array, " batch"]:
        targets = self._probabilities(batch) * (1.0 - smoothing) + smoothing / len(self.classes)
        return -(targets * jax.nn.log_softmax(features)).sum(axis=-1)

    def metrics(self, features: Float[Array, "batch classes"], batch: Batch) -> States:
        """Accuracy, and macro precision, recall and F1; the label of a soft target is its argmax."""
        weights, labels = self.weights(batch), batch.targets[self.target].values
        labels = labels.argmax(axis=-1) if labels.ndim == 2 else labels
        # argmax returns the index of the first NaN, often class 0. Non-finite logits count as predicting no class.
        predictions = jnp.where(jnp.isfinite(features).all(axis=-1), features.argmax(axis=-1), -1)
        return {
            "accuracy": Ratio.of((predictions == labels).astype(jnp.float32), weights),
            "by_class": ClassCounts.of(predictions, labels, weights, len(self.classes)),
        }

    def predictions(self, features: Float[Array, "batch classes"]) -> list[dict[str, Any]]:
        """The most probable class per example; "top" has the five most probable."""
        predictions = []
        for row in np.asarray(jax.nn.softmax(features, axis=-1)):
            best = np.argsort(-row, kind="stable")[:5]
            top = [{"answer": self.classes[index], "probability": float(row[index])} for index in best]
            predictions.append({**top[0], "top": top})
        return predictions

    def chance_loss(self, batch_size: int) -> float:
        """Cross-entropy of the uniform distribution, log(classes)."""
        return math.log(len(self.classes))

"""Contrastive learning of two modalities: softmax (CLIP) or sigmoid (SigLIP) loss over all pairs of the batch."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError, nearest
from mmjax.layers import AttentionPooling, Linear, first_pool, last_pool, mean_pool
from mmjax.sharding import parameter
from mmjax.tasks.base import Task, TaskConfig, check_reads, presence
from mmjax.tasks.losses.pairs import pair_losses, retrieval_ranks
from mmjax.tasks.metrics import Ratio, States
from mmjax.tokens import Batch, TargetSpec, Tokens

Pooling = Literal["mean", "first", "last", "attention"]
Embeddings = tuple[Float[Array, "batch width"], Float[Array, "batch width"]]
POOLS = {"mean": mean_pool, "first": first_pool, "last": last_pool}


@jax.custom_vjp
def clip_above(x: Float[Array, ""], maximum: Float[Array, ""]) -> Float[Array, ""]:
    """min(x, maximum), with the gradient of projected gradient descent.

    Above the maximum, the gradient passes only if a descent step lowers x. With a plain minimum the gradient is 0
    there, so x could never decrease again.
    """
    return jnp.minimum(x, maximum)


def _clip_above_forward(x, maximum):
    return clip_above(x, maximum), (x, maximum)


def _clip_above_backward(saved, cotangent):
    x, maximum = saved
    return jnp.where((x < maximum) | (cotangent > 0), cotangent, 0.0), jnp.zeros_like(maximum)


clip_above.defvjp(_clip_above_forward, _clip_above_backward)


class Contrastive(Task):
    """Contrastive loss between the embeddings of two modalities; the pair of one example is positive, others negative.

    `loss="softmax"` is the symmetric InfoNCE loss of CLIP (Radford et al., Learning Transferable Visual Models From
    Natural Language Supervision, 2021); `loss="sigmoid"` is the loss of SigLIP (Zhai et al., Sigmoid Loss for Language
    Image Pre-Training, 2023). Examples that lack one of the two inputs are neither positives nor negatives. With
    `positives`, pairs with equal values of that target are positive too (Khosla et al., Supervised Contrastive
    Learning, 2020).
    """

    coupled = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TaskConfig):
        """Options of `Contrastive`.

        Attributes:
          pair: names of the two tokens, for example ("encoders.image", "encoders.text"); reading fused tokens would
            leak one modality into the other.
          loss: "softmax" (CLIP) or "sigmoid" (SigLIP).
          width: width of the shared embedding space.
          pooling: pooling of the tokens, one value or one per side: "mean", "first" (class token), "last" (end of the
            sequence) or "attention" (learned query).
          heads: attention heads of attention pooling.
          positives: name of a target with class indices whose equal values mark positive pairs, or None.
          temperature: initial value of the learned logit scale; defaults to 1 / 0.07 for softmax and 10 for sigmoid, as
            in the papers.
          max_temperature: upper bound of the learned logit scale; defaults to 100 for softmax, as in CLIP, and to no
            bound for sigmoid, as in SigLIP.
          bias: initial value of the learned logit bias of the sigmoid loss; -10 as in SigLIP.
          recall_at: values of k for which retrieval recall@k is reported.
        """

        pair: tuple[str, ...]
        loss: Literal["softmax", "sigmoid"] = "softmax"
        width: Count = 256
        pooling: Pooling | tuple[Pooling, ...] = "mean"
        heads: Count = 4
        positives: str | None = None
        temperature: Annotated[float, AtLeast(1e-6)] | None = None
        max_temperature: Annotated[float, AtLeast(1e-6)] | None = None
        bias: float = -10.0
        recall_at: tuple[Count, ...] = (1, 5)

        def __post_init__(self):
            if len(self.pair) != 2:
                raise ValueError(f"pair {self.pair} has {len(self.pair)} names; give two")
            if len(self.poolings) != 2:
                raise ValueError(f"pooling {self.pooling} has {len(self.pooling)} names; give one, or one per side")
            if self.initial_temperature > self.largest_temperature:
                problem = f"temperature {self.initial_temperature:g} is above max_temperature"
                raise ValueError(f"{problem} {self.largest_temperature:g}; lower it, or raise max_temperature")

        @property
        def poolings(self) -> tuple[Pooling, ...]:
            """Pooling per side."""
            return (self.pooling,) * 2 if isinstance(self.pooling, str) else self.pooling

        @property
        def initial_temperature(self) -> float:
            """`temperature`, or its default for the loss."""
            default = 1 / 0.07 if self.loss == "softmax" else 10.0
            return default if self.temperature is None else self.temperature

        @property
        def largest_temperature(self) -> float:
            """`max_temperature`, or its default for the loss."""
            default = 100.0 if self.loss == "softmax" else math.inf
            return default if self.max_temperature is None else self.max_temperature

    def __init__(
        self, config: Config, name: str, widths: dict[str, int], targets: dict[str, TargetSpec], *, rngs: nnx.Rngs
    ):
        for reads in config.pair:
            check_reads(reads, widths, f"tasks.{name}.pair")
        if config.positives is not None:
            where = f"tasks.{name}.positives"
            if config.positives not in targets:
                problem = f"the data has no target {config.positives!r}"
                raise UserError(where, problem, nearest(config.positives, targets))
            if targets[config.positives].shape:
                problem = f"{config.positives!r} is a multi-label target, which defines no pairs"
                raise UserError(where, problem, "choose a target with one class per example")
        self.config = config
        self.pools: nnx.List[AttentionPooling] = nnx.List([])
        for reads, pooling in zip(config.pair, config.poolings, strict=True):
            if pooling == "attention":
                self.pools.append(AttentionPooling(widths[reads], config.heads, 4 * widths[reads], rngs=rngs))
        self.maps = nnx.List([Linear(widths[reads], config.width, bias=False, rngs=rngs) for reads in config.pair])
        temperature = jnp.array([config.initial_temperature], jnp.float32)
        self.log_temperature = parameter(jnp.log(temperature), "none")
        self.bias = parameter(jnp.array([config.bias]), "none") if config.loss == "sigmoid" else None

    @property
    def primary_metric(self) -> str:
        return f"recall@{self.config.recall_at[0]}" if self.config.recall_at else "loss"

    def weights(self, batch: Batch) -> Float[Array, " batch"]:
        """1 for examples with both inputs and, with `positives`, a label; else 0."""
        first, second = self.config.pair
        present = presence(batch, first) * presence(batch, second)
        if self.config.positives is not None:
            # The positives of an example without a label are unknown.
            present = present * (batch.targets[self.config.positives].weight > 0)
        return present

    def features(self, outputs: dict[str, Tokens]) -> Embeddings:
        """Embeddings of both sides, float32: L2-normalised, zero where the modality is absent."""
        features, pools = [], iter(self.pools)
        for side, (reads, pooling) in enumerate(zip(self.config.pair, self.config.poolings, strict=True)):
            tokens = outputs[reads]
            pooled = next(pools)(tokens) if pooling == "attention" else POOLS[pooling](tokens)
            projected = self.maps[side](pooled)
            norm = jnp.sqrt(jnp.sum(projected * projected, axis=-1, keepdims=True) + 1e-12)
            features.append(projected / norm)
        return features[0], features[1]

    def _valid_and_labels(self, batch: Batch) -> tuple[Bool[Array, " batch"], Int[Array, " batch"]]:
        """Mask of the examples in the loss, and labels that are equal for positive pairs."""
        if self.config.positives is None:
            return self.weights(batch) > 0, jnp.arange(batch.size)
        return self.weights(batch) > 0, batch.targets[self.config.positives].values

    def losses(self, features: Embeddings, batch: Batch) -> Float[Array, " batch"]:
        """Softmax or sigmoid loss of each example against the whole batch."""
        bias = jnp.zeros(()) if self.bias is None else self.bias[0]
        return pair_losses(self.config.loss, *features, self._temperature(), bias, *self._valid_and_labels(batch))

    def _temperature(self) -> Float[Array, ""]:
        """The logit scale, at most `max_temperature`."""
        maximum = jnp.float32(self.config.largest_temperature)
        return jnp.exp(clip_above(self.log_temperature[0], jnp.log(maximum)))

    def metrics(self, features: Embeddings, batch: Batch) -> States:
        """Retrieval recall@k within the batch, averaged over both directions, and the temperature."""
        weights = self.weights(batch)
        # Every comparison with NaN is false, so a NaN embedding would rank first. Count it as not retrieved.
        first, second = features
        finite = jnp.isfinite(first).all(axis=-1) & jnp.isfinite(second).all(axis=-1)
        first, second = (jnp.where(finite[:, None], side, 0.0) for side in features)
        states: States = {}
        if self.config.recall_at:
            unique_labels = self.config.positives is None
            ranks = retrieval_ranks(first, second, *self._valid_and_labels(batch), unique_labels=unique_labels)
            for k in self.config.recall_at:
                hits = [((rank < k) & finite).astype(jnp.float32) for rank in ranks]
                states[f"recall@{k}"] = Ratio.of(0.5 * (hits[0] + hits[1]), weights)
        states["temperature"] = Ratio.of(self._temperature()[None], jnp.ones(1))
        return states

    def predictions(self, features: Embeddings) -> list[dict[str, Any]]:
        """Cosine similarity of the two embeddings of each example, `{"similarity"}` in [-1, 1]."""
        first, second = (np.asarray(side, np.float64) for side in features)
        return [{"similarity": float(value)} for value in np.sum(first * second, axis=-1)]

    def chance_loss(self, batch_size: int) -> float:
        """Loss of constant logits with one positive per example; for sigmoid, with the best constant."""
        if self.config.loss == "softmax":
            return math.log(batch_size)
        # The best constant logit predicts the rate of positives, 1 / batch_size; the learned bias can reach it.
        rate = 1 / batch_size
        return -batch_size * (rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if batch_size > 1 else 0.0

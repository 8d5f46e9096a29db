"""Contrastive alignment of two modalities: softmax (CLIP) or sigmoid (SigLIP) over all pairs of the batch."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError, nearest
from mmjax.layers import AttentionPooling, Linear, first_pool, last_pool, mean_pool
from mmjax.sharding import parameter
from mmjax.tasks.base import Task, TaskConfig, check_reads, count_present
from mmjax.tasks.losses.pairs import pair_losses, worse_than_others
from mmjax.tasks.metrics import Ratio, States
from mmjax.tokens import Batch, TargetSpec, Tokens

Pooling = Literal["mean", "first", "last", "attention"]
POOLS = {"mean": mean_pool, "first": first_pool, "last": last_pool}


class Contrastive(Task):
    """Aligns the tokens of a pair of modalities: those of one example belong together, all others do not.

    `loss="softmax"` is that of CLIP (Radford et al., 2021), both ways, `loss="sigmoid"` that of SigLIP (Zhai et al.,
    2023). Examples that lack one of the two are neither positives nor negatives. Where the data has a target named
    `positives`, examples with equal values of it belong together as well (Khosla et al., Supervised Contrastive
    Learning, 2020).
    """

    coupled = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TaskConfig):
        """What is aligned and how.

        Attributes:
          pair: names of two tokens, like ("encoders.image", "encoders.text"); reading after a fusion would let one side
            see the other.
          loss: "softmax" or "sigmoid".
          width: of the space that both are mapped to.
          pooling: of each of the two, or one for both: the "mean" of the tokens, the "first" of them (a class token),
            the "last" (the end of a sentence), or "attention" of a learned query to them.
          heads: of that query.
          positives: name of a target with class indices, or None.
          temperature, bias: initial values of the learned factor and of SigLIP's learned bias; by default 1 / 0.07 for
            softmax, 10 and -10 for sigmoid, as in the papers.
          recall_at: the k of the retrieval recalls that are reported.
        """

        pair: tuple[str, ...]
        loss: Literal["softmax", "sigmoid"] = "softmax"
        width: Count = 256
        pooling: Pooling | tuple[Pooling, ...] = "mean"
        heads: Count = 4
        positives: str | None = None
        temperature: Annotated[float, AtLeast(1e-6)] | None = None
        bias: float = -10.0
        recall_at: tuple[Count, ...] = (1, 5)

        def __post_init__(self):
            if len(self.pair) != 2:
                raise ValueError(f"pair {self.pair} has {len(self.pair)} names; give two")
            if len(self.poolings) != 2:
                raise ValueError(f"pooling {self.pooling} has {len(self.pooling)} names; give one, or one of each side")

        @property
        def poolings(self) -> tuple[Pooling, ...]:
            """That of each side."""
            return (self.pooling,) * 2 if isinstance(self.pooling, str) else self.pooling

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
        self.config = config
        self.pools: nnx.List[AttentionPooling] = nnx.List([])
        for reads, pooling in zip(config.pair, config.poolings, strict=True):
            if pooling == "attention":
                self.pools.append(AttentionPooling(widths[reads], config.heads, 4 * widths[reads], rngs=rngs))
        self.maps = nnx.List([Linear(widths[reads], config.width, bias=False, rngs=rngs) for reads in config.pair])
        start = config.temperature
        if start is None:
            start = 1 / 0.07 if config.loss == "softmax" else 10.0
        self.log_temperature = parameter(jnp.log(jnp.array([start], jnp.float32)), "none")
        self.bias = parameter(jnp.array([config.bias]), "none") if config.loss == "sigmoid" else None

    @property
    def primary_metric(self) -> str:
        return f"recall@{self.config.recall_at[0]}" if self.config.recall_at else "loss"

    def weights(self, batch: Batch) -> jax.Array:
        first, second = self.config.pair
        present = count_present(batch, first) * count_present(batch, second)
        if self.config.positives is not None:
            # Without a known value nobody knows whom the example belongs with.
            present = present * (batch.targets[self.config.positives].weight > 0)
        return present

    def features(self, outputs: dict[str, Tokens]) -> tuple[jax.Array, jax.Array]:
        """Two arrays [B, width] float32 of length 1, or 0 where the modality is absent."""
        features, pools = [], iter(self.pools)
        for side, (reads, pooling) in enumerate(zip(self.config.pair, self.config.poolings, strict=True)):
            tokens = outputs[reads]
            pooled = next(pools)(tokens) if pooling == "attention" else POOLS[pooling](tokens)
            mapped = self.maps[side](pooled)
            length = jnp.sqrt(jnp.sum(mapped * mapped, axis=-1, keepdims=True) + 1e-12)
            features.append(mapped / length)
        return features[0], features[1]

    def _pairs(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Which examples take part, and labels that are equal where two examples belong together: two arrays [B]."""
        if self.config.positives is None:
            return self.weights(batch) > 0, jnp.arange(batch.size)
        return self.weights(batch) > 0, batch.targets[self.config.positives].values

    def losses(self, features: tuple[jax.Array, jax.Array], batch: Batch) -> jax.Array:
        temperature = jnp.exp(self.log_temperature[0])
        bias = jnp.zeros(()) if self.bias is None else self.bias[0]
        return pair_losses(self.config.loss, *features, temperature, bias, *self._pairs(batch))

    def metrics(self, features: tuple[jax.Array, jax.Array], batch: Batch) -> States:
        """Recall at k within the batch, over both directions, and the temperature."""
        weights = self.weights(batch)
        states: States = {}
        if self.config.recall_at:
            only_own = self.config.positives is None
            worse = worse_than_others(*features, *self._pairs(batch), only_own=only_own)
            for k in self.config.recall_at:
                found = [(count < k).astype(jnp.float32) for count in worse]
                states[f"recall@{k}"] = Ratio.of(0.5 * (found[0] + found[1]), weights)
        states["temperature"] = Ratio.of(jnp.exp(self.log_temperature[...]), jnp.ones(1))
        return states

    def chance(self, batch_size: int) -> float:
        if self.config.loss == "softmax":
            return math.log(batch_size)
        # At the start the best constant answer is the learned bias: all pairs but one are negatives.
        rate = 1 / batch_size
        return -batch_size * (rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if batch_size > 1 else 0.0

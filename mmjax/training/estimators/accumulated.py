"""Gradient accumulation over microbatches."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import Count
from mmjax.sharding import shard
from mmjax.tasks.metrics import Ratio, States, merge
from mmjax.tokens import Batch
from mmjax.training.objective import Objective, Parameters


class Accumulated:
    """Gradient accumulation: the gradient of the whole batch with the activation memory of one microbatch.

    Per-example losses are accumulated in a scan. Coupled losses, which depend on several examples, need the features of
    the whole batch and take two passes (GradCache: Gao et al., Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup, 2021): a forward pass for the features; the loss and its gradient with respect to the
    features; then a second forward pass per microbatch, whose VJP propagates that gradient to the parameters. Dropout
    depends on the example id, so both passes agree.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Accumulated`.

        Attributes:
          microbatches: number of microbatches per batch.
        """

        microbatches: Count

    def __init__(self, config: Config):
        self.microbatches = config.microbatches

    def __call__(self, objective: Objective, parameters: Parameters, batch: Batch) -> tuple[Parameters, States]:
        weight_sums = objective.weight_sums(parameters, batch)
        coupled = sorted(objective.coupled)
        uncoupled = [name for name in objective.task_weights if name not in objective.coupled]
        microbatches = self._split(batch, batch.rows)
        gradients = jax.tree.map(jnp.zeros_like, parameters)
        loss = jnp.zeros(())
        states: States = {}
        cotangents: dict[str, Any] = {}
        if coupled:

            def forward(microbatch):
                features = objective.features(parameters, microbatch)
                return {name: features[name] for name in coupled}

            features = self._join(jax.lax.map(forward, microbatches), batch.rows)
            (loss, states), (gradients, cotangents) = jax.value_and_grad(
                lambda parameters, features: objective.loss(parameters, features, batch, weight_sums, coupled),
                argnums=(0, 1),
                has_aux=True,
            )(parameters, features)
            cotangents = self._split(cotangents, batch.rows)

        def microbatch_gradient(microbatch, cotangents):
            def surrogate(parameters):
                features = objective.features(parameters, microbatch)
                loss, states = objective.loss(parameters, features, microbatch, weight_sums, uncoupled)
                # The gradient of features . cotangents is the VJP of the features.
                products = jax.tree.map(jnp.vdot, {name: features[name] for name in coupled}, cotangents)
                return loss + sum(jax.tree.leaves(products)), (loss, states)

            return jax.grad(surrogate, has_aux=True)(parameters)

        xs = microbatches, cotangents
        shapes = jax.eval_shape(microbatch_gradient, *jax.tree.map(lambda x: x[0], xs))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        sums, _ = jax.lax.scan(lambda carry, x: (merge(carry, microbatch_gradient(*x)), None), zeros, xs)
        more_gradients, (more_loss, more_states) = sums
        states |= {**more_states, "loss": Ratio(loss + more_loss, jnp.ones(()))}
        return merge(gradients, more_gradients), states

    def _split(self, tree: Any, rows: int) -> Any:
        """Splits [B, ...] into [microbatches, B / microbatches, ...]; each microbatch has rows of every device.

        Also splits arrays per packed row, [R, ...]. Examples packed into the same row stay in the same microbatch.
        """

        def split(x):
            if x.ndim == 0:
                return jnp.broadcast_to(x, (self.microbatches,))
            grouped = x.reshape(rows // self.microbatches, self.microbatches, -1, *x.shape[1:]).swapaxes(0, 1)
            x = grouped.reshape(self.microbatches, -1, *x.shape[1:])
            return shard(x, "none", "batch", *("none",) * (x.ndim - 2))

        return jax.tree.map(split, tree)

    def _join(self, tree: Any, rows: int) -> Any:
        """Inverse of `_split` for features."""

        def join(x):
            grouped = x.reshape(self.microbatches, rows // self.microbatches, -1, *x.shape[2:]).swapaxes(0, 1)
            return grouped.reshape(-1, *x.shape[2:])

        return jax.tree.map(join, tree)

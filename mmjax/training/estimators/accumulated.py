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
    """The same gradient in the memory of a microbatch.

    Losses of single examples add up over a scan. Losses that look at several examples at once need the features of the
    whole batch first, so they take two passes (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup, 2021): features without gradients; the loss and its gradient with respect to features; then each
    microbatch again, pulling that gradient back. Dropout draws are those of the example, so both passes agree.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How.

        Attributes:
          microbatches: how many parts the batch is cut into.
        """

        microbatches: Count

    def __init__(self, config: Config):
        self.microbatches = config.microbatches

    def __call__(self, objective: Objective, parameters: Parameters, batch: Batch) -> tuple[Parameters, States]:
        weight_sums = objective.weight_sums(parameters, batch)
        coupled = sorted(objective.coupled)
        single = [name for name in objective.task_weights if name not in objective.coupled]
        parts = self._cut(batch, batch.rows)
        gradients = jax.tree.map(jnp.zeros_like, parameters)
        loss = jnp.zeros(())
        states: States = {}
        pull: dict[str, Any] = {}
        if coupled:

            def forward(part):
                features = objective.features(parameters, part)
                return {name: features[name] for name in coupled}

            features = self._join(jax.lax.map(forward, parts), batch.rows)
            (loss, states), (gradients, pull) = jax.value_and_grad(
                lambda parameters, features: objective.loss(parameters, features, batch, weight_sums, coupled),
                argnums=(0, 1),
                has_aux=True,
            )(parameters, features)
            pull = self._cut(pull, batch.rows)

        def one(part, pull):
            def partial(parameters):
                features = objective.features(parameters, part)
                loss, states = objective.loss(parameters, features, part, weight_sums, single)
                pulled = jax.tree.map(jnp.vdot, {name: features[name] for name in coupled}, pull)
                return loss + sum(jax.tree.leaves(pulled)), (loss, states)

            return jax.grad(partial, has_aux=True)(parameters)

        first = jax.tree.map(lambda x: x[0], (parts, pull))
        empty = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(one, *first))
        summed, _ = jax.lax.scan(lambda carry, part: (merge(carry, one(*part)), None), empty, (parts, pull))
        more, (more_loss, more_states) = summed
        return merge(gradients, more), {**states, **more_states, "loss": Ratio(loss + more_loss, jnp.ones(()))}

    def _cut(self, tree: Any, rows: int) -> Any:
        """[B, ...] to [microbatches, B / microbatches, ...]; each microbatch takes rows from every device's share.

        Examples that share one of the R rows stay together, in arrays [R, ...] and in arrays [B, ...].
        """

        def cut(x):
            if x.ndim == 0:
                return jnp.broadcast_to(x, (self.microbatches,))
            together = x.reshape(rows // self.microbatches, self.microbatches, -1, *x.shape[1:]).swapaxes(0, 1)
            x = together.reshape(self.microbatches, -1, *x.shape[1:])
            return shard(x, "none", "batch", *("none",) * (x.ndim - 2))

        return jax.tree.map(cut, tree)

    def _join(self, tree: Any, rows: int) -> Any:
        """The inverse of `_cut` for features."""

        def join(x):
            together = x.reshape(self.microbatches, rows // self.microbatches, -1, *x.shape[2:]).swapaxes(0, 1)
            return together.reshape(-1, *x.shape[2:])

        return jax.tree.map(join, tree)

"""Mixing examples: loss transforms that train on blends of two examples, with the targets of both.

The loss of a blend is share x that of its own targets + (1 - share) x that of its partner's, whatever the task: for
cross-entropy this is the loss of the blended probabilities.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mmjax.config import AtLeast
from mmjax.errors import UserError
from mmjax.layers import Randomness
from mmjax.tasks.metrics import States
from mmjax.tokens import Batch, Input, InputSpec, Target
from mmjax.training.objective import Objective, Parameters, Wrapper, refuse_packed

_PARTNER = "partner of "


class Mixup:
    """Blends two examples, number by number (Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How often and how much.

        Attributes:
          alpha: the share of an example in its blend is drawn from Beta(alpha, alpha), and is at least a half: inputs
            that cannot be blended, token ids and rows of tables, are then those of the example that counts more.
          rate: of examples that are blended.
        """

        alpha: Annotated[float, AtLeast(0.01)] = 0.4
        rate: Annotated[float, AtLeast(0.0)] = 1.0

        def __post_init__(self):
            if self.rate > 1:
                raise ValueError(f"rate = {self.rate} exceeds 1; give a share of the examples")

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, objective: Objective) -> Objective:
        if objective.coupled:
            names = ", ".join(sorted(objective.coupled))
            problem = f"a blend of two examples is no pair of {names}"
            raise UserError(
                "train.loss_transforms", problem, "leave out the tasks that compare examples, or the mixing"
            )
        refuse_packed(objective, "mixing")
        mixable = tuple(sorted(name for name, spec in objective.specs.items() if _is_mixable(spec)))
        if not mixable:
            problem = f"none of the inputs {', '.join(sorted(objective.specs))} can be blended"
            raise UserError("train.loss_transforms", problem, "leave the mixing out")
        return _Mixed.around(objective, config=self.config, blend=type(self).blend, mixable=mixable)

    @staticmethod
    def blend(own: jax.Array, other: jax.Array, share: jax.Array, rng: Randomness) -> tuple[jax.Array, jax.Array]:
        """(values of the blends [B, ...], the shares of `own` [B] that they have in the end)."""
        spread = share.reshape((-1,) + (1,) * (own.ndim - 1)).astype(own.dtype)
        return spread * own + (1 - spread) * other, share


class CutMix(Mixup):
    """Replaces a rectangle of an example, or a stretch of time, by that of another one (Yun et al., CutMix, 2019)."""

    Config = Mixup.Config

    @staticmethod
    def blend(own: jax.Array, other: jax.Array, share: jax.Array, rng: Randomness) -> tuple[jax.Array, jax.Array]:
        """As `Mixup.blend`; the box covers 1 - share of the axes between the batch and the channels, rounded."""
        axes = range(1, max(2, own.ndim - 1))
        side = (1.0 - share) ** (1.0 / len(axes))
        inside = jnp.ones((own.shape[0],) + (1,) * (own.ndim - 1), bool)
        for axis in axes:
            length = own.shape[axis]
            size = jnp.round(side * length).astype(jnp.int32)
            draw = rng.fold_in(axis).bits(()).astype(jnp.float32) / 2.0**32
            begin = jnp.floor(draw * (length - size + 1)).astype(jnp.int32)
            place = jnp.arange(length)
            along = (place >= begin[:, None]) & (place < (begin + size)[:, None])
            inside &= along.reshape((own.shape[0],) + tuple(length if a == axis else 1 for a in range(1, own.ndim)))
        covered = jnp.broadcast_to(inside, own.shape).mean(axis=tuple(range(1, own.ndim)), dtype=jnp.float32)
        return jnp.where(inside, other, own), 1.0 - covered


@dataclasses.dataclass(frozen=True)
class _Mixed(Wrapper):
    config: Any = None
    blend: Any = None
    mixable: tuple[str, ...] = ()

    def prepare(self, batch: Batch) -> Batch:
        """The blends, with the targets of the examples, weighted by their share, and those of their partners."""
        batch = self.inner.prepare(batch).zero_absent()
        # The next example. Batches are shuffled, and of several devices only neighbours have to send one.
        partner = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0) if x.ndim else x, batch)
        rng = Randomness.make(self.seed, batch.step, batch.ids).fold_in("mixing")
        draw = jax.vmap(lambda seed: jax.random.beta(jax.random.key(seed), self.config.alpha, self.config.alpha))
        share = draw(rng.seeds).astype(jnp.float32)
        # What one of the two lacks says nothing of its target, and neither does what cannot be blended.
        there = {name: x.present for name, x in batch.inputs.items()}
        mixed = rng.fold_in("rate").keep_mask(1.0 - self.config.rate, ())
        for name, present in there.items():
            mixed &= present == partner.inputs[name].present
        mixed &= jnp.stack([there[name] for name in self.mixable]).any(axis=0)
        share = jnp.where(mixed, jnp.maximum(share, 1.0 - share), 1.0)
        inputs, total, count = dict(batch.inputs), jnp.zeros(batch.size), jnp.zeros(batch.size)
        for name in self.mixable:
            own, other = batch.inputs[name], partner.inputs[name]
            values, found = self.blend(own.values, other.values, share, rng.fold_in(name))
            # The mask of what can be blended is its length: the blend is as long as the longer of the two.
            both = mixed.reshape((-1,) + (1,) * (own.mask.ndim - 1))
            inputs[name] = Input(values, own.mask | (other.mask & both))
            total, count = total + found * there[name], count + there[name]
        share = jnp.where(mixed, total / jnp.maximum(count, 1.0), 1.0)
        targets = {name: Target(t.values, t.weight * share) for name, t in batch.targets.items()}
        for name, target in partner.targets.items():
            targets[_PARTNER + name] = Target(target.values, target.weight * (1.0 - share))
        return dataclasses.replace(batch, inputs=inputs, targets=targets)

    def weight_sums(self, parameters: Parameters, batch: Batch) -> dict[str, jax.Array]:
        one, other = (self.inner.weight_sums(parameters, part) for part in _apart(batch))
        return {name: one[name] + other[name] for name in one}

    def loss(self, parameters, features, batch, weight_sums, names=None) -> tuple[jax.Array, States]:
        """Both parts; the metrics are those of the examples' own targets."""
        own, other = _apart(batch)
        loss, states = self.inner.loss(parameters, features, own, weight_sums, names)
        return loss + self.inner.loss(parameters, features, other, weight_sums, names)[0], states


def _is_mixable(spec: InputSpec) -> bool:
    """Whether numbers between two values mean something: of categories they are others."""
    return spec.dtype.startswith("float") and "categories" not in spec.details


def _apart(batch: Batch) -> tuple[Batch, Batch]:
    """The batch with its own targets, and with its partners'. One that was not prepared has no partners."""
    own = {name: target for name, target in batch.targets.items() if not name.startswith(_PARTNER)}
    other = {
        name: batch.targets.get(_PARTNER + name, Target(target.values, jnp.zeros_like(target.weight)))
        for name, target in own.items()
    }
    return dataclasses.replace(batch, targets=own), dataclasses.replace(batch, targets=other)

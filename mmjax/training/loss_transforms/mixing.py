"""Mixup and CutMix: train on mixtures of two examples with the targets of both.

For any task, the loss of a mixture is share x loss on the example's targets + (1 - share) x loss on its partner's
targets. For cross-entropy this equals the loss on the mixed target probabilities.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.config import AtLeast
from mmjax.errors import UserError
from mmjax.layers import Randomness
from mmjax.tasks.metrics import PerExample, States
from mmjax.tokens import Batch, Input, InputSpec, Target
from mmjax.training.objective import Objective, Parameters, Wrapper, reject_packed

Values = Float[Array, "batch ..."]

_PARTNER = "partner of "
"""Prefix of target names in a mixed batch: the targets of the partners."""


class Mixup:
    """Interpolates pairs of examples (Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Mixup` and `CutMix`.

        Attributes:
          alpha: each example keeps the weight max(s, 1 - s), with s drawn from Beta(alpha, alpha), so at least 0.5.
            Inputs that cannot be mixed, such as token ids and table rows, thus come from the dominant example.
          rate: fraction of examples that are mixed.
        """

        alpha: Annotated[float, AtLeast(0.01)] = 0.4
        rate: Annotated[float, AtLeast(0.0)] = 1.0

        def __post_init__(self):
            if self.rate > 1:
                raise ValueError(f"rate = {self.rate} exceeds 1; give a fraction of the examples")

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, objective: Objective) -> Objective:
        if objective.coupled:
            names = ", ".join(sorted(objective.coupled))
            problem = f"mixing does not support the contrastive tasks {names}"
            raise UserError("train.loss_transforms", problem, "remove these tasks or the mixing")
        reject_packed(objective, "mixing")
        mixable = tuple(sorted(name for name, spec in objective.specs.items() if _is_mixable(spec)))
        if not mixable:
            problem = f"none of the inputs {', '.join(sorted(objective.specs))} can be mixed"
            raise UserError("train.loss_transforms", problem, "remove the mixing")
        return _Mixed.around(objective, config=self.config, mix=type(self).mix, mixable=mixable)

    @staticmethod
    def mix(own: Values, other: Values, share: PerExample, rng: Randomness) -> tuple[Values, PerExample]:
        """Mixes two batches of inputs.

        Args:
          own, other: values of the examples and of their partners.
          share: requested share of `own`.
          rng: random bits per example.

        Returns:
          Mixed values, and the actual share of `own` in each.
        """
        weight = share.reshape((-1,) + (1,) * (own.ndim - 1)).astype(own.dtype)
        return weight * own + (1 - weight) * other, share


class CutMix(Mixup):
    """Replaces a rectangle, or a time interval, by that of another example.

    Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features (2019).
    """

    Config = Mixup.Config

    @staticmethod
    def mix(own: Values, other: Values, share: PerExample, rng: Randomness) -> tuple[Values, PerExample]:
        """Same as `Mixup.mix`; a box covers a fraction 1 - share, rounded, of the axes between batch and channels."""
        axes = range(1, max(2, own.ndim - 1))
        relative_size = (1.0 - share) ** (1.0 / len(axes))
        inside = jnp.ones((own.shape[0],) + (1,) * (own.ndim - 1), bool)
        for axis in axes:
            length = own.shape[axis]
            size = jnp.round(relative_size * length).astype(jnp.int32)
            draw = rng.fold_in(axis).bits(()).astype(jnp.float32) / 2.0**32
            start = jnp.floor(draw * (length - size + 1)).astype(jnp.int32)
            index = jnp.arange(length)
            interval = (index >= start[:, None]) & (index < (start + size)[:, None])
            inside &= interval.reshape((own.shape[0],) + tuple(length if a == axis else 1 for a in range(1, own.ndim)))
        covered = jnp.broadcast_to(inside, own.shape).mean(axis=tuple(range(1, own.ndim)), dtype=jnp.float32)
        return jnp.where(inside, other, own), 1.0 - covered


@dataclasses.dataclass(frozen=True)
class _Mixed(Wrapper):
    config: Any = None
    mix: Any = None
    mixable: tuple[str, ...] = ()

    def prepare(self, batch: Batch) -> Batch:
        """Mixes the whole batch and adds the partner targets; shares become target weights."""
        batch = self.inner.prepare(batch).zero_absent()
        # The partner is the previous example: batches are shuffled, and only neighbouring devices communicate.
        partner = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0) if x.ndim else x, batch)
        rng = Randomness.make(self.seed, batch.step, batch.ids).fold_in("mixing")
        draw = jax.vmap(lambda seed: jax.random.beta(jax.random.key(seed), self.config.alpha, self.config.alpha))
        share = draw(rng.seeds).astype(jnp.float32)
        # Mix only pairs with the same inputs present, at least one of them mixable; otherwise a mixture may carry no
        # information about one of the two targets.
        present = {name: x.present for name, x in batch.inputs.items()}
        mixed = rng.fold_in("rate").keep_mask(1.0 - self.config.rate, ())
        for name, flags in present.items():
            mixed &= flags == partner.inputs[name].present
        mixed &= jnp.stack([present[name] for name in self.mixable]).any(axis=0)
        share = jnp.where(mixed, jnp.maximum(share, 1.0 - share), 1.0)
        inputs, total, count = dict(batch.inputs), jnp.zeros(batch.size), jnp.zeros(batch.size)
        for name in self.mixable:
            own, other = batch.inputs[name], partner.inputs[name]
            values, own_share = self.mix(own.values, other.values, share, rng.fold_in(name))
            # Masks of mixable inputs encode the length: the mixture is as long as the longer of the two.
            both = mixed.reshape((-1,) + (1,) * (own.mask.ndim - 1))
            inputs[name] = Input(values, own.mask | (other.mask & both))
            total, count = total + own_share * present[name], count + present[name]
        share = jnp.where(mixed, total / jnp.maximum(count, 1.0), 1.0)
        targets = {name: Target(t.values, t.weight * share) for name, t in batch.targets.items()}
        for name, target in partner.targets.items():
            targets[_PARTNER + name] = Target(target.values, target.weight * (1.0 - share))
        return dataclasses.replace(batch, inputs=inputs, targets=targets)

    def weight_sums(self, parameters: Parameters, batch: Batch) -> dict[str, jax.Array]:
        own, other = (self.inner.weight_sums(parameters, part) for part in _split_targets(batch))
        return {name: own[name] + other[name] for name in own}

    def loss(self, parameters, features, batch, weight_sums, names=None) -> tuple[jax.Array, States]:
        """Sum of the losses on own and partner targets; metrics use the own targets."""
        own, other = _split_targets(batch)
        loss, states = self.inner.loss(parameters, features, own, weight_sums, names)
        return loss + self.inner.loss(parameters, features, other, weight_sums, names)[0], states


def _is_mixable(spec: InputSpec) -> bool:
    """True if values can be interpolated: floating-point and not categorical."""
    return spec.dtype.startswith("float") and "categories" not in spec.details


def _split_targets(batch: Batch) -> tuple[Batch, Batch]:
    """The batch with own targets and with partner targets; the latter have weight 0 in an unmixed batch."""
    own = {name: target for name, target in batch.targets.items() if not name.startswith(_PARTNER)}
    other = {
        name: batch.targets.get(_PARTNER + name, Target(target.values, jnp.zeros_like(target.weight)))
        for name, target in own.items()
    }
    return dataclasses.replace(batch, targets=own), dataclasses.replace(batch, targets=other)

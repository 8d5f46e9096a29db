"""Mixup and CutMix: train on mixtures of two examples with the targets of both.

For any task, the loss of a mixture is share x loss on the example's targets + (1 - share) x loss on its partner's
targets. For cross-entropy this equals the loss on the mixed target probabilities.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mmjax.config import AtLeast
from mmjax.errors import UserError
from mmjax.layers import Randomness
from mmjax.tasks.metrics import PerExample, States
from mmjax.tokens import Batch, Input, InputSpec, Target
from mmjax.training.objective import Objective, Parameters, Wrapper, reject_packed

_PARTNER = "partner of "
"""Prefix of the names of the partners' targets in a mixed batch."""


class Mixup:
    """Interpolates pairs of examples (Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Mixup` and `CutMix`.

        Attributes:
          alpha: parameter of Beta(alpha, alpha), from which s is drawn. Each example keeps the weight max(s, 1 - s), at
            least 0.5, so inputs that cannot be mixed, such as token ids and table rows, come from the dominant example.
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
    def mix(own: Input, other: Input, share: PerExample, rng: Randomness) -> tuple[Input, PerExample]:
        """Mixes two batches of inputs.

        Args:
          own, other: the examples and their partners, zero where masked.
          share: requested share of `own`; 1 leaves an example as it is.
          rng: random bits per example.

        Returns:
          Mixed inputs, and the actual share of `own` in each.
        """
        weight = _expand(share, own.values).astype(own.values.dtype)
        # Masks of mixable inputs encode the length: the mixture is as long as the longer of the two.
        mask = own.mask | (other.mask & _expand(share < 1, own.mask))
        return Input(weight * own.values + (1 - weight) * other.values, mask), share


class CutMix(Mixup):
    """Replaces a rectangle, or a time interval, by the same region of another example.

    Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features (2019).
    """

    Config = Mixup.Config

    @staticmethod
    def mix(own: Input, other: Input, share: PerExample, rng: Randomness) -> tuple[Input, PerExample]:
        """Cuts a box out of `other` and pastes it into `own`; arguments and results as in `Mixup.mix`.

        The box covers a fraction 1 - share of the volume spanned by the axes between batch and channels; its sides are
        rounded to whole elements. Along a padded axis, sizes are relative to the example's own length, and the box is
        placed where both examples have values. The actual share counts only valid values, not padding.
        """
        values = own.values
        axes = range(1, max(2, values.ndim - 1))
        relative_size = (1.0 - share) ** (1.0 / len(axes))
        inside = jnp.ones((values.shape[0],) + (1,) * (values.ndim - 1), bool)
        for axis in axes:
            length = _extent(own, axis)
            common = jnp.minimum(length, _extent(other, axis))
            size = jnp.minimum(jnp.round(relative_size * length).astype(jnp.int32), common)
            draw = rng.fold_in(axis).bits(()).astype(jnp.float32) / 2.0**32
            # `draw` may round up to 1.
            start = jnp.minimum(jnp.floor(draw * (common - size + 1)).astype(jnp.int32), common - size)
            index = jnp.arange(values.shape[axis])
            interval = (index >= start[:, None]) & (index < (start + size)[:, None])
            inside &= jnp.expand_dims(interval, tuple(a for a in range(1, values.ndim) if a != axis))
        own_mask, other_mask = (_expand(x.mask, values) for x in (own, other))
        kept, cut = _count(own_mask & ~inside), _count(other_mask & inside)
        valid = jnp.where(inside, other_mask, own_mask)
        mask = valid.any(axis=tuple(range(own.mask.ndim, values.ndim)))
        return Input(jnp.where(inside, other.values, values), mask), kept / jnp.maximum(kept + cut, 1.0)


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
            inputs[name], own_share = self.mix(own, other, share, rng.fold_in("inputs").fold_in(name))
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


def _expand(x: jax.Array, values: jax.Array) -> jax.Array:
    """Appends axes of size 1 to `x` [B, ...], so that it broadcasts to `values` [B, ...]."""
    return x.reshape(x.shape + (1,) * (values.ndim - x.ndim))


def _extent(x: Input, axis: int) -> Int[Array, " batch"]:
    """Length of each example along an axis: up to its last valid element, or the whole axis if that is not masked."""
    if axis >= x.mask.ndim:
        return jnp.full(x.mask.shape[0], x.values.shape[axis])
    valid = x.mask.any(axis=tuple(a for a in range(1, x.mask.ndim) if a != axis))
    return jnp.where(valid, jnp.arange(1, valid.shape[1] + 1), 0).max(axis=1)


def _count(mask: Bool[Array, "batch ..."]) -> PerExample:
    """Number of True elements per example, float32."""
    return mask.sum(axis=tuple(range(1, mask.ndim)), dtype=jnp.float32)


def _is_mixable(spec: InputSpec) -> bool:
    """True if values can be interpolated: floating-point and not categorical."""
    return spec.dtype.startswith("float") and "categories" not in spec.details


def _split_targets(batch: Batch) -> tuple[Batch, Batch]:
    """Returns two copies of `batch`, with its own targets and with the partner targets (weight 0 if it is unmixed)."""
    own = {name: target for name, target in batch.targets.items() if not name.startswith(_PARTNER)}
    other = {
        name: batch.targets.get(_PARTNER + name, Target(target.values, jnp.zeros_like(target.weight)))
        for name, target in own.items()
    }
    return dataclasses.replace(batch, targets=own), dataclasses.replace(batch, targets=other)

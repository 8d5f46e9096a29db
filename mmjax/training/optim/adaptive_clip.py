"""Adaptive gradient clipping."""

from __future__ import annotations

import dataclasses

import optax


class AdaptiveClip:
    """Adaptive gradient clipping: limits the gradient norm of each unit relative to the norm of its weights.

    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization (2021).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `AdaptiveClip`.

        Attributes:
          clipping: maximum ratio of gradient norm to weight norm, per unit.
        """

        clipping: float = 0.01

    def __call__(self, config: Config) -> optax.GradientTransformation:
        return optax.adaptive_grad_clip(config.clipping)

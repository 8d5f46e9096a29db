"""Adaptive gradient clipping."""

from __future__ import annotations

import dataclasses

import optax


class AdaptiveClip:
    """Clips each unit's gradient to a share of its weights' norm (Brock et al., High-Performance ..., NFNets, 2021)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How much.

        Attributes:
          clipping: the largest norm of a unit's gradient, as a share of the norm of its weights.
        """

        clipping: float = 0.01

    def __call__(self, config: Config) -> optax.GradientTransformation:
        return optax.adaptive_grad_clip(config.clipping)

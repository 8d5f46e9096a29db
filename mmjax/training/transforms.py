"""Optax transforms that a config can put before the optimiser, by `kind`: one of the four plug points.

A new one is a class with a nested dataclass `Config` whose instances, called with it, give an
`optax.GradientTransformation`; in its own file, with a line in `TRANSFORMS`.
"""

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


class Centralize:
    """Subtracts the mean from each weight's gradient (Yong et al., Gradient Centralization, 2020)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __call__(self, config: Config) -> optax.GradientTransformation:
        return optax.centralize()


TRANSFORMS = {
    "adaptive_clip": AdaptiveClip,
    "centralize": Centralize,
}

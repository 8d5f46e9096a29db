"""Gradient centralisation."""

from __future__ import annotations

import dataclasses

import optax


class Centralize:
    """Gradient centralisation: subtracts the mean from the gradient of each weight matrix.

    Yong et al., Gradient Centralization: A New Optimization Technique for Deep Neural Networks (2020).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __call__(self, config: Config) -> optax.GradientTransformation:
        return optax.centralize()

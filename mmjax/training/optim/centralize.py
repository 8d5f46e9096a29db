"""Gradient centralisation."""

from __future__ import annotations

import dataclasses

import optax


class Centralize:
    """Subtracts the mean from each weight's gradient (Yong et al., Gradient Centralization, 2020)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __call__(self, config: Config) -> optax.GradientTransformation:
        return optax.centralize()

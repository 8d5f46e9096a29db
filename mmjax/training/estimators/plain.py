"""Gradient of the whole batch in one pass."""

from __future__ import annotations

import dataclasses

import jax

from mmjax.tasks.metrics import States
from mmjax.tokens import Batch
from mmjax.training.objective import Objective, Parameters


class Plain:
    """Computes the gradient of the whole batch in one forward and backward pass."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """No options."""

    def __init__(self, config: Config):
        self.microbatches = 1

    def __call__(self, objective: Objective, parameters: Parameters, batch: Batch) -> tuple[Parameters, States]:
        return jax.grad(objective, has_aux=True)(parameters, batch)

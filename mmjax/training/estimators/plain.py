"""The gradient of the whole batch."""

from __future__ import annotations

import dataclasses

import jax

from mmjax.tasks.metrics import States
from mmjax.tokens import Batch
from mmjax.training.objective import Objective, Parameters


class Plain:
    """The gradient of the whole batch at once."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config):
        self.microbatches = 1

    def __call__(self, objective: Objective, parameters: Parameters, batch: Batch) -> tuple[Parameters, States]:
        gradients, states = jax.grad(objective, has_aux=True)(parameters, batch)
        return gradients, states

"""The objective: L = sum over tasks of w_i(step) * (sum of losses / sum of weights), in parts that estimators can use.

The sums of weights, `weight_sums`, are counted over the whole batch before any microbatch is looked at: the mean of
the means of microbatches is another number as soon as examples are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.layers import Randomness
from mmjax.model import Model
from mmjax.sharding import MeshConfig, use_mesh_config
from mmjax.tasks.metrics import Ratio, States
from mmjax.tokens import Batch, InputSpec
from mmjax.training.optim.schedules import Schedule

Parameters = Any
"""Plain nested dicts of arrays."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a model on a batch, as a pure function of parameters.

    A loss transform makes a `Wrapper` around another objective.

    Attributes:
      graph: the model without its parameters, from `nnx.split`.
      factors: {task: w_i}, schedules over the data step.
      seed: of dropout and stochastic depth.
      coupled: tasks whose losses look at several examples at once.
      layout: the section `mesh`, which says how what is computed is split.
      specs: {name: what an input is}.
    """

    graph: Any
    task_weights: Mapping[str, Schedule]
    seed: int
    coupled: frozenset[str] = frozenset()
    layout: MeshConfig = MeshConfig()
    specs: Mapping[str, InputSpec] = dataclasses.field(default_factory=dict)

    def model(self, parameters: Parameters) -> Model:
        return nnx.merge(self.graph, parameters)

    def prepare(self, batch: Batch) -> Batch:
        """What a training step makes of its batch before any of it is cut off: here nothing."""
        return batch

    def weight_sums(self, parameters: Parameters, batch: Batch) -> dict[str, jax.Array]:
        """{task: the sum of its weights over the batch}."""
        tasks = self.model(parameters).tasks
        batch = batch.zero_absent()
        return {name: tasks[name].weights(batch).sum(dtype=jnp.float32) for name in self.task_weights}

    def features(self, parameters: Parameters, batch: Batch, train: bool = True) -> dict[str, Any]:
        """{task: what its head makes of each example}, with dropout if `train`."""
        rng = Randomness.make(self.seed, batch.step, batch.ids) if train else None
        with use_mesh_config(self.layout):
            return self.model(parameters).features(batch, rng)

    def loss(
        self,
        parameters: Parameters,
        features: Mapping[str, Any],
        batch: Batch,
        weight_sums: Mapping[str, jax.Array],
        names: Collection[str] | None = None,
    ) -> tuple[jax.Array, States]:
        """The part of the named tasks (default: all) and of these examples in the loss, and the metrics' states."""
        tasks = self.model(parameters).tasks
        batch = batch.zero_absent()
        loss, states = jnp.zeros(()), {}
        for name in self.task_weights if names is None else names:
            weights, total = tasks[name].weights(batch), weight_sums[name]
            with use_mesh_config(self.layout):
                summed = (tasks[name].losses(features[name], batch) * weights).sum()
                metrics = tasks[name].metrics(features[name], batch)
            factor = self.task_weights[name](batch.step)
            # A task without any example adds 0, whatever its sum is.
            loss += factor * jnp.where(total > 0, summed / jnp.where(total > 0, total, 1.0), 0.0)
            states[f"{name}/loss"] = Ratio(summed, weights.sum(dtype=jnp.float32))
            for metric, state in metrics.items():
                states[f"{name}/{metric}"] = state
        return loss, jax.lax.stop_gradient(states)

    def __call__(self, parameters: Parameters, batch: Batch, train: bool = True) -> tuple[jax.Array, States]:
        """The loss of a whole batch and the metrics' states, "loss" among them."""
        features = self.features(parameters, batch, train)
        loss, states = self.loss(parameters, features, batch, self.weight_sums(parameters, batch))
        return loss, {**states, "loss": Ratio(jax.lax.stop_gradient(loss), jnp.ones(()))}


@dataclasses.dataclass(frozen=True)
class Wrapper(Objective):
    """An objective around another one: what a subclass does not override is the inner one's.

    Made with `around`, so that it has the graph, factors and all else of the inner one.
    """

    inner: Any = None

    @classmethod
    def around(cls, objective: Objective, **own: Any) -> Wrapper:
        """Wraps `objective`; `own` are the subclass's further fields."""
        fields = {field.name: getattr(objective, field.name) for field in dataclasses.fields(Objective)}
        return cls(**fields, inner=objective, **own)

    def prepare(self, batch):
        return self.inner.prepare(batch)

    def weight_sums(self, parameters, batch):
        return self.inner.weight_sums(parameters, batch)

    def features(self, parameters, batch, train=True):
        return self.inner.features(parameters, batch, train)

    def loss(self, parameters, features, batch, weight_sums, names=None):
        return self.inner.loss(parameters, features, batch, weight_sums, names)


def refuse_packed(objective: Objective, technique: str) -> None:
    """Raises a UserError where examples share rows, for a technique that takes a row of an input for an example."""
    packed = sorted(name for name, spec in objective.specs.items() if spec.axes)
    if packed:
        problem = f"{technique} does not know packed inputs, as {', '.join(packed)}"
        raise UserError("train.loss_transforms", problem, "leave it out, or set data.packing.slots = 1")

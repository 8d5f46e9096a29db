"""Lower bound of a step's memory from shapes alone. Takes seconds; compilation takes minutes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import Literal


@dataclasses.dataclass(frozen=True)
class LowerBound:
    """Minimum bytes that a step needs on one device.

    Attributes:
      parameters: parameters and their EMA.
      optimizer: state of the optimiser.
      batch: inputs and targets.
      activations: arrays that the layers keep for the backward pass of one microbatch.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.parameters + self.optimizer + self.batch + self.activations


def memory_lower_bound(experiment: Any) -> LowerBound:
    """Returns the lower bound of an `mmjax.experiment.Experiment`'s step with its rematerialisation.

    Assumes that activations are split evenly over all devices of the mesh; real shardings need at least as much.
    """
    shapes, shardings = experiment.shapes, experiment.shardings
    microbatches = getattr(experiment.trainer.estimator, "microbatches", 1)
    batch = experiment.sharded_abstract_batch
    return LowerBound(
        parameters=sum(_shard_bytes(getattr(shapes, name), getattr(shardings, name)) for name in ("parameters", "ema")),
        optimizer=_shard_bytes(shapes.optimizer, shardings.optimizer),
        batch=_shard_bytes(batch, jax.tree.map(lambda leaf: leaf.sharding, batch)),
        activations=residual_bytes(experiment) // microbatches // experiment.mesh.size,
    )


def residual_bytes(experiment: Any) -> int:
    """Returns the bytes of residuals that loops over layers keep, for the whole batch and summed over devices.

    Residuals are arrays kept for the backward pass. The compiler may recompute others, but not those of a loop,
    which are floating-point [layers, batch, ...].
    """
    batch_size = experiment.config.train.batch_size

    def forward(parameters: Any, batch: Any) -> Any:
        return jax.vjp(lambda values: experiment.objective(values, batch)[0], parameters)[1]

    with jax.set_mesh(experiment.mesh):
        jaxpr = jax.make_jaxpr(forward)(experiment.shapes.parameters, experiment.sharded_abstract_batch).jaxpr
    kept = {variable for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    loops = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    stacked = [
        variable.aval
        for loop in loops
        for variable in loop.outvars
        if variable in kept and variable.aval.shape[:1] == (loop.params["length"],)
    ]
    return sum(
        math.prod(aval.shape) * aval.dtype.itemsize
        for aval in stacked
        if batch_size in aval.shape and jax.numpy.issubdtype(aval.dtype, jax.numpy.floating)
    )


def _shard_bytes(shapes: Any, shardings: Any) -> int:
    """Returns the bytes of a tree's shards on one device."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * _itemsize(leaf.dtype) for leaf, sharding in leaves)


def _itemsize(dtype: Any) -> int:
    """Returns the bytes of an element; 0 for a PRNG key."""
    return getattr(dtype, "itemsize", 0) if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else 0

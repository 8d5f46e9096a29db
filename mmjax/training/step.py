"""Train step: `train_step(state, batch) -> state`, pure, jitted once, with donated state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mmjax.sharding import parameter_shardings, replicated
from mmjax.tasks.metrics import Ratio, States, merge
from mmjax.tokens import Batch
from mmjax.training.objective import Objective, Parameters
from mmjax.training.state import TrainState

Estimator = Callable[[Objective, Parameters, Batch], tuple[Parameters, States]]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Train step and its components.

    Attributes:
      objective: loss and metrics.
      estimator: computes gradients and metric states from objective, parameters and batch.
      optimizer: Optax optimiser.
      ema: decay of the exponential moving average of the parameters, or None.
      log_every: interval in data steps at which the metric window is reset.
    """

    objective: Objective
    estimator: Estimator
    optimizer: optax.GradientTransformation
    ema: float | None = None
    log_every: int = 1

    def init(self, parameters: Parameters, batch: Batch) -> TrainState:
        """Initial train state; `batch` only determines the shapes of the metric states."""
        _, states = jax.eval_shape(self.gradients_and_metrics, parameters, batch)
        return TrainState(
            parameters=parameters,
            optimizer=self.optimizer.init(parameters),
            ema=jax.tree.map(jnp.copy, parameters) if self.ema else {},
            step=jnp.zeros((), jnp.int32),
            data_step=jnp.zeros((), jnp.int32),
            window=jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), states),
        )

    @functools.cached_property
    def gradients_and_metrics(self) -> Callable[[Parameters, Batch], tuple[Parameters, States]]:
        """Function from parameters and batch to gradients and metric states.

        Jitted so that its callers share one trace; tracing a model takes seconds.
        """
        return jax.jit(self._gradients_and_metrics)

    def _gradients_and_metrics(self, parameters: Parameters, batch: Batch) -> tuple[Parameters, States]:
        gradients, states = self.estimator(self.objective, parameters, self.objective.prepare(batch))
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm)
        # Steps with a gradient that is not finite are counted but excluded from all other metrics.
        states = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), states)
        states["optimizer/gradient_norm"] = Ratio(jnp.where(finite, norm, 0.0), finite.astype(jnp.float32))
        states["optimizer/skipped"] = Ratio(1.0 - finite, jnp.ones(()))
        return gradients, states

    def step(self, state: TrainState, batch: Batch) -> TrainState:
        """One update. If the gradient norm is not finite, only `data_step` and `window` change."""
        gradients, states = self.gradients_and_metrics(state.parameters, batch)
        finite = states["optimizer/skipped"].total == 0
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        ema = {}
        if self.ema:
            # Warm up the decay, so that the EMA forgets the random initialisation quickly.
            decay = jnp.minimum(self.ema, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema, parameters)
        fresh = state.data_step % self.log_every == 0
        window = jax.tree.map(lambda old: jnp.where(fresh, jnp.zeros_like(old), old), state.window)
        # The guard is part of the step because hooks run after the old state has been donated.
        new = (parameters, optimizer, ema, state.step + 1)
        old = (state.parameters, state.optimizer, state.ema, state.step)
        parameters, optimizer, ema, step = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        return TrainState(parameters, optimizer, ema, step, state.data_step + 1, merge(window, states))


def state_shardings(mesh: Mesh, trainer: Trainer, variables: nnx.State, shapes: TrainState) -> TrainState:
    """Shardings of the train state: EMA and optimiser moments are sharded like their parameters, the rest replicated.

    Args:
      mesh: device mesh.
      trainer: trainer of the state.
      variables: model parameters with their logical axes, abstract or concrete.
      shapes: abstract train state.
    """
    whole = replicated(mesh)
    parameters = parameter_shardings(mesh, variables, trainer.objective.layout.rules)
    parameter_shapes = jax.tree.map(lambda shape: shape.shape, shapes.parameters)

    def mirror(leaf: Any, sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
        # Factored moments have fewer dimensions than their parameter and are small: replicate them.
        return sharding if tuple(leaf.shape) == tuple(shape) else whole

    optimizer = optax.tree_map_params(
        trainer.optimizer,
        mirror,
        shapes.optimizer,
        parameters,
        jax.tree.map(_Shape, parameter_shapes, is_leaf=lambda x: isinstance(x, tuple)),
        transform_non_params=lambda _: whole,
    )
    return TrainState(
        parameters=parameters,
        optimizer=optimizer,
        ema=parameters if trainer.ema else {},
        step=whole,
        data_step=whole,
        window=jax.tree.map(lambda _: whole, shapes.window),
    )


class _Shape(tuple):
    """A shape as a pytree leaf, which a plain tuple is not."""


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """XLA compiler options for the train step, by device kind."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return {}
    # Compile unrolled layers to one shared function instead of one copy each. For 48 layers, the code is a fifth of the
    # size, and compilation takes less time and memory.
    options = {"xla_tpu_enable_deduplicated_calls": "ENABLED"}
    if mesh.shape["tensor"] == 1:
        # Disable windowed einsum, which pays off only for matmuls sharded over `tensor`. For parameters sharded over
        # `fsdp` alone, XLA would multiply slice by slice around a ring and reduce gradients in the same way: many small
        # matmuls that take 2.5 times as long. The option is the minimum size in MiB.
        options["xla_jf_spmd_threshold_for_windowed_einsum_mib"] = str(2**31 - 1)
    if device.device_kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite"):
        # These chips have 64 or 128 MiB of VMEM, of which XLA gives a matmul 16 MiB; 32 MiB allow larger tiles.
        options["xla_tpu_scoped_vmem_limit_kib"] = "32768"
    if device.device_kind in ("TPU v5", "TPU v6 lite"):
        # Overlap all-gathers of parameters with matmuls. XLA does so by default on v5e, and TPU7x has separate cores
        # for collectives.
        options |= dict.fromkeys(_ASYNC_ALL_GATHER_OPTIONS, "true")
    return options


_ASYNC_ALL_GATHER_OPTIONS = (
    "xla_enable_async_all_gather",
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
)


def compile_step(trainer: Trainer, mesh: Mesh, shardings: TrainState) -> Callable[[TrainState, Batch], TrainState]:
    """Jits the train step; it is traced under `mesh`, which the constraints of `mmjax.sharding.shard` need.

    Returns:
      `step(state, batch) -> state`, with a method `lower` for ahead-of-time compilation.
    """
    options = compiler_options(mesh)
    jitted = jax.jit(trainer.step, donate_argnums=0, out_shardings=shardings, compiler_options=options)

    def step(state: TrainState, batch: Batch) -> TrainState:
        with jax.set_mesh(mesh):
            return jitted(state, batch)

    def lower(state: Any, batch: Any):
        with jax.set_mesh(mesh):
            return jitted.lower(state, batch)

    step.lower = lower  # type: ignore[attr-defined]
    return step

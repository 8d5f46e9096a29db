"""The one training step: `train_step(state, batch) -> state`, pure, jitted once, with donated state."""

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
    """The step and what it is made of.

    Attributes:
      estimator: makes gradients and metrics from objective, parameters and batch.
      ema: decay of the moving average of the parameters, or None.
      log_every: the metrics' window starts anew after so many data steps.
    """

    objective: Objective
    estimator: Estimator
    optimizer: optax.GradientTransformation
    ema: float | None = None
    log_every: int = 1

    def init(self, parameters: Parameters, batch: Batch) -> TrainState:
        """The state before the first step; `batch` gives the shapes of the metrics only."""
        _, states = jax.eval_shape(self.measure, parameters, batch)
        return TrainState(
            parameters=parameters,
            optimizer=self.optimizer.init(parameters),
            ema=jax.tree.map(jnp.copy, parameters) if self.ema else {},
            step=jnp.zeros((), jnp.int32),
            data_step=jnp.zeros((), jnp.int32),
            window=jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), states),
        )

    @functools.cached_property
    def measure(self) -> Callable[[Parameters, Batch], tuple[Parameters, States]]:
        """Gradients and metrics' states. Jitted, since tracing a model takes seconds and three callers need it."""
        return jax.jit(self._measure)

    def _measure(self, parameters: Parameters, batch: Batch) -> tuple[Parameters, States]:
        gradients, states = self.estimator(self.objective, parameters, self.objective.prepare(batch))
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm)
        # A broken step leaves no trace in the metrics but its count.
        states = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), states)
        one = jnp.ones(())
        states["optimizer/gradient_norm"] = Ratio(jnp.where(finite, norm, 0.0), finite.astype(jnp.float32))
        states["optimizer/skipped"] = Ratio(1.0 - finite, one)
        return gradients, states

    def step(self, state: TrainState, batch: Batch) -> TrainState:
        """One update; where a gradient is not finite, nothing changes but the counters of data."""
        gradients, states = self.measure(state.parameters, batch)
        finite = states["optimizer/skipped"].total == 0
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        ema = {}
        if self.ema:
            # The first steps count more, so that the random start is soon forgotten.
            decay = jnp.minimum(self.ema, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), state.ema, parameters)
        fresh = state.data_step % self.log_every == 0
        window = jax.tree.map(lambda old: jnp.where(fresh, jnp.zeros_like(old), old), state.window)
        # The guard stands here because a hook would come after the old state was donated.
        new = (parameters, optimizer, ema, state.step + 1)
        old = (state.parameters, state.optimizer, state.ema, state.step)
        parameters, optimizer, ema, step = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        return TrainState(parameters, optimizer, ema, step, state.data_step + 1, merge(window, states))


def state_shardings(mesh: Mesh, trainer: Trainer, variables: nnx.State, shapes: TrainState) -> TrainState:
    """Where each array of the state lives: what mirrors a parameter, as moments do, lives where the parameter does.

    Args:
      variables: the model's parameters with their logical axes, abstract or real.
      shapes: the abstract state.
    """
    whole = replicated(mesh)
    of_parameters = parameter_shardings(mesh, variables, trainer.objective.layout.rules)
    parameter_shapes = jax.tree.map(lambda shape: shape.shape, shapes.parameters)

    def mirror(leaf: Any, sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
        # Factored moments have fewer dimensions than their parameter and are small: they stay whole.
        return sharding if tuple(leaf.shape) == tuple(shape) else whole

    optimizer = optax.tree_map_params(
        trainer.optimizer,
        mirror,
        shapes.optimizer,
        of_parameters,
        jax.tree.map(_Shape, parameter_shapes, is_leaf=lambda x: isinstance(x, tuple)),
        transform_non_params=lambda _: whole,
    )
    return TrainState(
        parameters=of_parameters,
        optimizer=optimizer,
        ema=of_parameters if trainer.ema else {},
        step=whole,
        data_step=whole,
        window=jax.tree.map(lambda _: whole, shapes.window),
    )


class _Shape(tuple):
    """A shape that is a leaf of a tree, which a plain tuple is not."""


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """What the compiler of a training step is told on this kind of device."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return {}
    # Layers that are unrolled call the same code instead of having a copy each: for 48 of them a fifth of the code,
    # and less time and memory to compile it.
    options = {"xla_tpu_enable_deduplicated_calls": "ENABLED"}
    if mesh.shape["tensor"] == 1:
        # What is split over `fsdp` alone XLA would multiply slice by slice, as the slices go around, and sum gradients
        # up in the same way: many small products, in two and a half times the time. This is the size in MiB from which
        # on it does; for products that are split over `tensor` it is worth it.
        options["xla_jf_spmd_threshold_for_windowed_einsum_mib"] = str(2**31 - 1)
    if device.device_kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite"):
        # These have 64 or 128 MiB of vector memory, of which XLA gives a product 16: twice that makes larger tiles.
        options["xla_tpu_scoped_vmem_limit_kib"] = "32768"
    if device.device_kind in ("TPU v5", "TPU v6 lite"):
        # On a v5e XLA gathers parameters beside products by itself, and a TPU7x has other cores for it; here it has to
        # be told.
        options |= dict.fromkeys(_GATHERS_BESIDE_PRODUCTS, "true")
    return options


_GATHERS_BESIDE_PRODUCTS = (
    "xla_enable_async_all_gather",
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
)


def compile_step(trainer: Trainer, mesh: Mesh, shardings: TrainState) -> Callable[[TrainState, Batch], TrainState]:
    """The jitted step, traced under the mesh, so that `shard` holds."""
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

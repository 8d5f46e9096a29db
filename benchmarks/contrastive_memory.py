"""Working memory per chip of a contrastive loss and its gradient: rings of mmjax against a dense matrix.

    python benchmarks/contrastive_memory.py [--topology=v5e:16x16] [--width=1152] [--batch=131072 --batch=1048576]

Compiles both forms for a TPU slice without needing one (`pip install -c constraints.txt -e '.[tpu]'`); nothing is
executed. Prints the temporary memory that the compiler reports, which excludes the features and their gradients. The
dense form is the usual one: features are gathered on every chip, which computes its rows of the matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags

from mmjax.errors import UserError
from mmjax.planning.topology import topology_devices
from mmjax.sharding import MeshConfig, batch_sharding, make_mesh, replicated, shard
from mmjax.tasks.losses.pairs import LOSSES, pair_losses

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:16x16", "a TPU slice")
_WIDTH = flags.DEFINE_integer("width", 1152, "width of the features", lower_bound=1)
_BATCH = flags.DEFINE_multi_integer("batch", [131_072, 1_048_576], "global batch; may be given several times")


GROUP = 16
"""Devices per group of `mmjax.tasks.losses.pairs`, and size of the axis `fsdp` that the groups need."""


def ring(kind: str, first: jax.Array, second: jax.Array, temperature: jax.Array) -> jax.Array:
    valid, labels = jnp.ones(len(first), bool), jnp.arange(len(first))
    return pair_losses(kind, first, second, temperature, jnp.zeros(()), valid, labels).mean()


def dense(kind: str, first: jax.Array, second: jax.Array, temperature: jax.Array) -> jax.Array:
    logits = shard(temperature * first @ second.T, "batch", "none")
    if kind == "sigmoid":
        return -jax.nn.log_sigmoid(jnp.where(jnp.eye(len(first), dtype=bool), logits, -logits)).sum(axis=1).mean()
    rows, columns = (jnp.diagonal(jax.nn.log_softmax(logits, axis=axis)) for axis in (1, 0))
    return -0.5 * (rows + columns).mean()


def temporary_bytes(loss: Callable, mesh: jax.sharding.Mesh, batch: int, width: int) -> int | None:
    """Returns the temporary memory of the loss and its gradient on one device in bytes; None if it does not fit."""
    rows, whole = batch_sharding(mesh), replicated(mesh)
    side = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=rows)
    temperature = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), out_shardings=(whole, (rows, rows, whole)))
        try:
            return step.lower(side, side, temperature).compile().memory_analysis().temp_size_in_bytes
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None


def format_size(size: int | None) -> str:
    return "does not fit" if size is None else f"{size / 2**20:,.0f} MiB"


def main(_) -> None:
    try:
        devices = topology_devices(_TOPOLOGY.value)
        mesh, groups = (make_mesh(config, devices) for config in (MeshConfig(), MeshConfig(fsdp=GROUP)))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"JAX {jax.__version__}, {_TOPOLOGY.value} ({mesh.size} devices), {_WIDTH.value} float32 values per feature")
    print(f"{'loss':8} {'batch':>9} {'ring':>14} {f'groups of {GROUP}':>14} {'dense':>14}")
    for kind in LOSSES:
        for batch in _BATCH.value:
            sizes = [
                temporary_bytes(functools.partial(form, kind), on_mesh, batch, _WIDTH.value)
                for form, on_mesh in ((ring, mesh), (ring, groups), (dense, mesh))
            ]
            print(f"{kind:8} {batch:9,} " + " ".join(f"{format_size(size):>14}" for size in sizes), flush=True)


if __name__ == "__main__":
    app.run(main)

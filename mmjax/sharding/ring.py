"""Ring collectives: each device processes the blocks of all devices, one at a time, and never holds them all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.sharding.rules import ambient_mesh, axis_size, mesh_axes

Body = Callable[[Any, Any], tuple[Any, Any]]


def ring_scan(
    body: Body, carry: Any, block: Any, axes: Sequence[str], *, chunks: int = 1, axis: int = 0
) -> tuple[Any, Any]:
    """Passes the block of each device once around the ring and back to its owner, inside `jax.shard_map`.

    Updates that `body` makes to a block travel with it, so a block can accumulate values from all devices. XLA overlaps
    sending the arrays that `body` returns unchanged with the computation of `body`.

    Args:
      body: (carry, block) -> (carry, block), the same on all devices.
      carry: pytree that stays on its device.
      block: pytree of arrays that is passed around.
      axes: mesh axes that form the ring, the fastest last; () runs `body` on the local block alone.
      chunks: number of chunks that `body` processes a block in, to save memory; it must divide dimension `axis`.
      axis: dimension of the block's arrays to split into chunks.

    Returns:
      The final carry, and the block of this device after its full round.
    """

    def process(carry, block):
        if chunks == 1:
            return body(carry, block)
        pieces = jax.tree.map(lambda x: _split_chunks(x, chunks, axis), block)
        carry, pieces = jax.lax.scan(body, carry, pieces)
        return carry, jax.tree.map(lambda x: _merge_chunks(x, axis), pieces)

    if not axes:
        return process(carry, block)
    count = jax.lax.axis_size(tuple(axes))
    next_device = [(device, (device + 1) % count) for device in range(count)]

    def step(state, _):
        carry, block = process(*state)
        return (carry, jax.tree.map(lambda x: jax.lax.ppermute(x, tuple(axes), next_device), block)), None

    return jax.lax.scan(step, (carry, block), length=count)[0]


def _split_chunks(x: jax.Array, chunks: int, axis: int) -> jax.Array:
    """Splits dimension `axis` into chunks, [chunks, ..., size / chunks, ...]."""
    x = x.reshape(*x.shape[:axis], chunks, x.shape[axis] // chunks, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _merge_chunks(x: jax.Array, axis: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def num_chunks(size: int, row_size: int, limit: int) -> int:
    """Returns the least divisor n of `size` with size / n * row_size <= limit, or `size` if none satisfies it."""
    chunks = max(1, min(size, -(-size * row_size // limit)))
    while size % chunks:
        chunks += 1
    return chunks


def row_axes(size: int) -> tuple[str, ...]:
    """Returns the mesh axes to shard `size` batch rows over.

    Tries all axes, then those of "batch", and returns the first set whose product divides `size`, else ().
    """
    mesh = ambient_mesh()
    if mesh is None:
        return ()
    for axes in (tuple(mesh.axis_names), mesh_axes("batch")):
        if size % axis_size(mesh, axes) == 0:
            return axes
    return ()


def map_row_shards(local: Callable[..., Any], axes: tuple[str, ...], arguments: Sequence[Any]) -> Any:
    """Calls `local(axes, *arguments)` on each device with its shard of the rows, by `jax.shard_map`.

    Scalars are replicated, in the arguments and in the results; all other arrays are sharded over their first
    dimension. Without axes this is a plain call.
    """
    mapped = functools.partial(local, axes)
    if not axes:
        return mapped(*arguments)

    def specs(tree):
        return jax.tree.map(lambda x: PartitionSpec(axes) if x.ndim else PartitionSpec(), tree)

    shapes = jax.eval_shape(functools.partial(local, ()), *arguments)
    # `local` itself makes its scalars equal on all devices, by psum; JAX cannot verify this through the ring.
    mapped = jax.shard_map(mapped, in_specs=specs(tuple(arguments)), out_specs=specs(shapes), check_vma=False)
    return mapped(*arguments)

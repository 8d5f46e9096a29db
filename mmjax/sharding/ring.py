"""Rings: every device sees what all others hold, one part after the other, and never all of it at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.sharding.rules import ambient_mesh, axis_size, mesh_axes

Body = Callable[[Any, Any], tuple[Any, Any]]


def ring(
    body: Body, carry: Any, visitor: Any, axes: Sequence[str], *, pieces: int = 1, axis: int = 0
) -> tuple[Any, Any]:
    """Brings the visitor of each device to every device once, and home again, inside `jax.shard_map`.

    What `body` changes in a visitor travels with it, so that a visitor can gather something from all devices. A part of
    it that `body` leaves alone is sent on while `body` computes.

    Args:
      body: (carry, visitor) -> (carry, visitor), the same on all devices.
      carry: stays on its device.
      visitor: a tree of arrays that goes around.
      axes: mesh axes that the ring leads over, the fastest last; () is a device by itself.
      pieces: `body` sees a visitor in so many parts, one after the other, to save memory.
      axis: the dimension of all arrays of the visitor that is cut into pieces.
    """

    def visit(carry, visitor):
        if pieces == 1:
            return body(carry, visitor)
        cut = jax.tree.map(lambda x: _cut(x, pieces, axis), visitor)
        carry, cut = jax.lax.scan(body, carry, cut)
        return carry, jax.tree.map(lambda x: _join(x, axis), cut)

    if not axes:
        return visit(carry, visitor)
    count = jax.lax.axis_size(tuple(axes))
    onward = [(device, (device + 1) % count) for device in range(count)]

    def turn(state, _):
        carry, visitor = visit(*state)
        return (carry, jax.tree.map(lambda x: jax.lax.ppermute(x, tuple(axes), onward), visitor)), None

    return jax.lax.scan(turn, (carry, visitor), length=count)[0]


def _cut(x: jax.Array, pieces: int, axis: int) -> jax.Array:
    x = x.reshape(*x.shape[:axis], pieces, x.shape[axis] // pieces, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _join(x: jax.Array, axis: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def pieces_of(size: int, beside: int, limit: int) -> int:
    """Into how many equal pieces `size` must be cut so that one piece times `beside` does not exceed `limit`."""
    pieces = max(1, min(size, -(-size * beside // limit)))
    while size % pieces:
        pieces += 1
    return pieces


def rows_over(size: int) -> tuple[str, ...]:
    """The mesh axes over which `size` rows of a batch are split best: all of them, else those of the batch, else ()."""
    mesh = ambient_mesh()
    if mesh is None:
        return ()
    for axes in (tuple(mesh.axis_names), mesh_axes("batch")):
        if size % axis_size(mesh, axes) == 0:
            return axes
    return ()


def split_rows(local: Callable[..., Any], axes: tuple[str, ...], arguments: Sequence[Any]) -> Any:
    """Calls `local(axes, *arguments)` on each device with its share of the rows, as one function of whole arrays.

    Numbers ([]) are the same on all devices, among the results too; all other arrays are split over their first
    dimension. Without axes this is a plain call.
    """
    here = functools.partial(local, axes)
    if not axes:
        return here(*arguments)

    def specs(tree):
        return jax.tree.map(lambda x: PartitionSpec(axes) if x.ndim else PartitionSpec(), tree)

    shapes = jax.eval_shape(functools.partial(local, ()), *arguments)
    # What is the same on all devices is so by our own sums, which JAX could not follow through the ring.
    mapped = jax.shard_map(here, in_specs=specs(tuple(arguments)), out_specs=specs(shapes), check_vma=False)
    return mapped(*arguments)

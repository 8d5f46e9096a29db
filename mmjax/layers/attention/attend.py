"""Attention: a pure function first, a module with its projections second."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mmjax.layers.attention.kernels import KERNELS, choose_kernel, log_once
from mmjax.layers.attention.sequence import all_to_all_attention, ring_attention
from mmjax.sharding import ambient_mesh, axis_size, current_mesh_config, current_platform, mesh_axes, sharding_axes
from mmjax.tokens import Tokens

MANY = 128
"""Tokens that are worth splitting: where that fails, the log says so."""


def attend(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    query_segments: Int[Array, "batch queries"],
    key_segments: Int[Array, "batch keys"],
) -> Float[Array, "batch queries heads depth"]:
    """Scaled dot-product attention (Vaswani et al., Attention Is All You Need, 2017).

    A query sees the keys of its own segment. One that sees no key gets exactly 0, with gradient 0. The softmax is
    float32. `key` and `value` must be finite also where nobody sees them; `Tokens` holds zeros there.

    On a mesh whose axis `sequence` splits queries and keys, devices exchange them as `mesh.sequence_attention` says.
    What computes on each device is `mesh.attention`; the devices of the mesh decide, not those of this machine.
    """
    mesh, layout = ambient_mesh(), current_mesh_config()
    arrays = (query, key, value, query_segments, key_segments)
    kernel = KERNELS[choose_kernel(layout.attention, current_platform(), query, key)]
    if mesh is None:
        return kernel.compute(*arrays)
    over_heads = sharding_axes(mesh, "heads", query.shape[2])
    over_tokens = tuple(axis for axis in mesh_axes("tokens") if mesh.shape[axis] > 1 and axis not in mesh_axes("heads"))
    shares, heads = axis_size(mesh, over_tokens), query.shape[2] // axis_size(mesh, over_heads)
    if query.shape[1] % shares or key.shape[1] % shares:
        if min(query.shape[1], key.shape[1]) >= MANY:
            log_once(f"{query.shape[1]} queries and {key.shape[1]} keys do not divide by {over_tokens} = {shares}")
        # XLA itself shares the work of a few queries that read many tokens.
        return KERNELS["xla"].compute(*arrays)
    compute: Callable = kernel.compute
    if over_tokens:
        compute = functools.partial(ring_attention, over_tokens)
        if layout.sequence_attention == "all_to_all" and heads % shares == 0:
            compute = functools.partial(all_to_all_attention, over_tokens, kernel.compute)
        elif layout.sequence_attention == "all_to_all":
            log_once(f"attention goes in a ring: {shares} does not divide the {heads} heads of a device")
    elif kernel is KERNELS["xla"]:
        return kernel.compute(*arrays)
    split = PartitionSpec(sharding_axes(mesh, "batch", query.shape[0]), over_tokens, over_heads, None)
    return _on_each_device(compute, split, arrays)


def _on_each_device(compute: Callable, split: PartitionSpec, arrays: tuple[jax.Array, ...]) -> jax.Array:
    """Each device computes its share of examples, tokens and heads; kernels are nothing that XLA could split itself.

    Heads cross the border side by side, as the projections leave them. Where they have a dimension of their own there,
    XLA makes the products before and after give and take that, in a layout which is not the kernel's, and copies.
    """
    depth = arrays[0].shape[-1]

    def on_one(query, key, value, query_segments, key_segments):
        own = (x.reshape(*x.shape[:2], -1, depth) for x in (query, key, value))
        return _side_by_side(compute(*own, query_segments, key_segments))

    flat, segments = PartitionSpec(*split[:3]), PartitionSpec(*split[:2])
    mapped = jax.shard_map(on_one, in_specs=(flat,) * 3 + (segments,) * 2, out_specs=flat, check_vma=False)
    return mapped(*map(_side_by_side, arrays[:3]), *arrays[3:]).reshape(arrays[0].shape)


def _side_by_side(x: Float[Array, "batch tokens heads depth"]) -> Float[Array, "batch tokens width"]:
    return x.reshape(*x.shape[:2], -1)


def visible_segments(queries: Tokens, keys: Tokens) -> tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]]:
    """Segments in which tokens that are not there have numbers of their own, so that nobody sees them."""
    return jnp.where(queries.mask, queries.segments, -1), jnp.where(keys.mask, keys.segments, -2)

"""Scaled dot-product attention as a pure function, with dispatch over kernels and mesh axes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmjax.layers.attention.kernels import KERNELS, choose_kernel, log_once
from mmjax.layers.attention.sequence import all_to_all_attention, ring_attention
from mmjax.layers.attention.shapes import Key, KeyIds, Query, QueryIds
from mmjax.sharding import ambient_mesh, axis_size, current_mesh_config, current_platform, mesh_axes, sharding_axes
from mmjax.tokens import Tokens

MIN_LOGGED_TOKENS = 128
"""Minimum sequence length for which a failure to split the tokens is logged; shorter sequences gain little."""


def attend(query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds) -> Query:
    """Scaled dot-product attention (Vaswani et al., Attention Is All You Need, 2017).

    A query attends to the keys of its own segment. A query without a visible key gets exactly 0, with gradient 0. The
    softmax is float32. `key` and `value` must be finite even where masked; `Tokens` holds zeros there.

    If the mesh axis `sequence` splits queries and keys, devices exchange them by the method `mesh.sequence_attention`.
    `mesh.attention` selects the kernel, by the platform of the mesh rather than of the local machine.
    """
    mesh, layout = ambient_mesh(), current_mesh_config()
    arrays = (query, key, value, query_segments, key_segments)
    kernel = KERNELS[choose_kernel(layout.attention, current_platform(), query, key)]
    if mesh is None:
        return kernel.compute(*arrays)
    head_axes = sharding_axes(mesh, "heads", query.shape[2])
    token_axes = tuple(axis for axis in mesh_axes("tokens") if mesh.shape[axis] > 1 and axis not in mesh_axes("heads"))
    shards, local_heads = axis_size(mesh, token_axes), query.shape[2] // axis_size(mesh, head_axes)
    if query.shape[1] % shards or key.shape[1] % shards:
        if min(query.shape[1], key.shape[1]) >= MIN_LOGGED_TOKENS:
            counts = f"{query.shape[1]} queries and {key.shape[1]} keys"
            log_once(f"attention is not split over {token_axes}: {counts} are not both divisible by {shards}")
        # Let XLA partition this case, typically a few queries that attend to many tokens.
        return KERNELS["xla"].compute(*arrays)
    compute: Callable = kernel.compute
    if token_axes:
        compute = functools.partial(ring_attention, token_axes)
        if layout.sequence_attention == "all_to_all" and local_heads % shards == 0:
            compute = functools.partial(all_to_all_attention, token_axes, kernel.compute)
        elif layout.sequence_attention == "all_to_all":
            log_once(f"ring attention, not all_to_all: {shards} does not divide the {local_heads} heads per device")
    elif kernel is KERNELS["xla"]:
        return kernel.compute(*arrays)
    spec = PartitionSpec(sharding_axes(mesh, "batch", query.shape[0]), token_axes, head_axes, None)
    return _shard_mapped(compute, spec, arrays)


def _shard_mapped(compute: Callable, spec: PartitionSpec, arrays: tuple[jax.Array, ...]) -> Query:
    """Runs `compute` on each device's examples, tokens and heads, since XLA cannot partition custom kernels.

    Arrays cross the `shard_map` boundary as [batch, tokens, heads * depth], the layout of the projections. With a
    separate head axis, XLA would give the adjacent matmuls another layout than the kernel's and copy the arrays.
    """
    depth = arrays[0].shape[-1]

    def local(query, key, value, query_segments, key_segments):
        heads = (x.reshape(*x.shape[:2], -1, depth) for x in (query, key, value))
        return _merge_heads(compute(*heads, query_segments, key_segments))

    flat, segments = PartitionSpec(*spec[:3]), PartitionSpec(*spec[:2])
    mapped = jax.shard_map(local, in_specs=(flat,) * 3 + (segments,) * 2, out_specs=flat, check_vma=False)
    return mapped(*map(_merge_heads, arrays[:3]), *arrays[3:]).reshape(arrays[0].shape)


def _merge_heads(x: Float[Array, "batch tokens heads depth"]) -> Float[Array, "batch tokens width"]:
    return x.reshape(*x.shape[:2], -1)


def visible_segments(queries: Tokens, keys: Tokens) -> tuple[QueryIds, KeyIds]:
    """Segment ids in which padding has -1 (queries) or -2 (keys), so that it never matches."""
    return jnp.where(queries.mask, queries.segments, -1), jnp.where(keys.mask, keys.segments, -2)

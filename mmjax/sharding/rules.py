"""The one table that says which mesh axes each logical axis of an array is split over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

ArrayT = TypeVar("ArrayT", bound=jax.Array)

RULES: dict[str, tuple[str, ...]] = {
    # Activations.
    "batch": ("data", "fsdp"),
    "tokens": (),
    "width": (),
    # Both.
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "vocabulary": ("tensor",),
    # Parameters.
    "embed": ("fsdp",),
    "layers": (),
    "none": (),
}


def axis_size(mesh, axes: Sequence[str]) -> int:
    """How many parts an array dimension has that is split over these mesh axes."""
    return math.prod(mesh.shape[axis] for axis in axes)


def spec_for(mesh, names: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """The partition of an array with these logical axes; a dimension that does not divide is left whole."""
    parts = []
    for name, size in zip(names, shape, strict=True):
        axes = RULES[name]
        parts.append(axes if axes and size % axis_size(mesh, axes) == 0 else None)
    return PartitionSpec(*parts)


def shard(x: ArrayT, *names: str) -> ArrayT:
    """Constrains the layout of an activation, for example `shard(x, "batch", "tokens", "width")`.

    The mesh is that of `jax.set_mesh`, under which every step is traced. Without one (a model called by itself, on one
    device) there is nothing to constrain.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec_for(mesh, names, x.shape))

"""The one table that says which mesh axes each logical axis of an array is split over."""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

from mmjax.errors import UserError, nearest
from mmjax.sharding.mesh import AXES, MeshConfig, Rule

ArrayT = TypeVar("ArrayT", bound=jax.Array)

RULES: dict[str, tuple[str, ...]] = {
    # Activations.
    "batch": ("slice", "data", "fsdp"),
    "tokens": ("sequence",),
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

FIXED = ("batch", "layers", "none")
"""Logical axes that no rule of a config changes: the batch's follow from the mesh, layers are scanned over."""

_layout: contextvars.ContextVar[MeshConfig] = contextvars.ContextVar("layout")


@contextlib.contextmanager
def laid_out(config: MeshConfig) -> Iterator[None]:
    """While a function is traced in this block, `shard` and attention follow the section `mesh`."""
    token = _layout.set(config)
    try:
        yield
    finally:
        _layout.reset(token)


def current_layout() -> MeshConfig:
    """The section `mesh` of the block of `laid_out`, by default one without rules."""
    return _layout.get(MeshConfig())


def ambient_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh of `jax.set_mesh`, under which every step is traced; None without one, and where nothing is split.

    Inside `jax.shard_map` it is None too: there each device computes for itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def current_platform() -> str:
    """ "tpu", "gpu" or "cpu": of the devices of the mesh of `jax.set_mesh`, which need not be those of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def find_rule(rules: Sequence[Rule], name: str, path: str = "") -> Rule | None:
    """The first of a config's rules for a logical axis, of the parameter `path` or of any array."""
    if name in FIXED:
        return None
    for rule in rules:
        if re.fullmatch(rule.pattern, name) or (path and re.fullmatch(rule.pattern, f"{path}:{name}")):
            return rule
    return None


def check_rules(rules: Sequence[Rule], parameters: Collection[tuple[str, Sequence[str]]]) -> None:
    """Raises a UserError where a rule matches nothing: no logical axis, and no (name, axes) of `parameters`."""
    free = [name for name in RULES if name not in FIXED]
    for number, rule in enumerate(rules):
        names = {*free, *(f"{path}:{axis}" for path, axes in parameters for axis in axes if axis not in FIXED)}
        if not any(re.fullmatch(rule.pattern, name) for name in names):
            raise UserError(
                f"mesh.rules[{number}].pattern", f"{rule.pattern!r} matches nothing", nearest(rule.pattern, free)
            )


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes of a logical axis of activations, under the current layout."""
    rule = find_rule(current_layout().rules, name)
    return RULES[name] if rule is None else rule.axes


def axis_size(mesh, axes: Sequence[str]) -> int:
    """How many parts an array dimension has that is split over these mesh axes."""
    return math.prod(mesh.shape[axis] for axis in axes)


def split_over(mesh, name: str, size: int, taken: Collection[str] = ()) -> tuple[str, ...]:
    """The mesh axes that a dimension of an activation is split over; () where they do not divide it."""
    axes = tuple(axis for axis in mesh_axes(name) if axis not in taken and mesh.shape[axis] > 1)
    return axes if size % axis_size(mesh, axes) == 0 else ()


def spec_for(mesh, names: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """The partition of an array with these logical axes; a dimension that does not divide is left whole.

    A mesh axis that two dimensions ask for goes to the later one: heads and hidden units come after tokens.
    """
    parts: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for name, size in reversed(list(zip(names, shape, strict=True))):
        axes = split_over(mesh, name, size, taken)
        taken |= set(axes)
        parts.append(axes or None)
    return PartitionSpec(*reversed(parts))


def shard(x: ArrayT, *names: str) -> ArrayT:
    """Constrains the layout of an activation, for example `shard(x, "batch", "tokens", "width")`.

    The mesh is that of `jax.set_mesh`. Without one (a model called by itself, on one device) there is nothing to
    constrain.
    """
    mesh = ambient_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec_for(mesh, names, x.shape))


assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)

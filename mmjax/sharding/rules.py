"""Logical axis rules: the table that maps the logical axes of arrays to mesh axes."""

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
    # Activations and parameters.
    "heads": ("tensor",),
    "hidden": ("tensor",),
    "vocabulary": ("tensor",),
    # Parameters.
    "embed": ("fsdp",),
    "layers": (),
    "none": (),
}

FIXED = ("batch", "layers", "none")
"""Logical axes that config rules cannot change: "batch" follows from the mesh sizes, "layers" is scanned over."""

_mesh_config: contextvars.ContextVar[MeshConfig] = contextvars.ContextVar("mesh_config")


@contextlib.contextmanager
def use_mesh_config(config: MeshConfig) -> Iterator[None]:
    """Context manager under which traced calls of `shard` and attention follow `config`."""
    token = _mesh_config.set(config)
    try:
        yield
    finally:
        _mesh_config.reset(token)


def current_mesh_config() -> MeshConfig:
    """Returns the config of the innermost `use_mesh_config`, or the default `MeshConfig()`."""
    return _mesh_config.get(MeshConfig())


def ambient_mesh() -> jax.sharding.AbstractMesh | None:
    """Returns the mesh of `jax.set_mesh`, or None if none is set or it has one device.

    Returns None inside `jax.shard_map` too, where arrays are local to each device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def current_platform() -> str:
    """Returns "tpu", "gpu" or "cpu": the platform of the mesh of `jax.set_mesh`, else the default backend.

    The two differ when a step is compiled ahead of time for devices of another kind.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def find_rule(rules: Sequence[Rule], name: str, path: str = "") -> Rule | None:
    """Returns the first rule that matches the logical axis `name`, or "path:name" for the parameter at `path`."""
    if name in FIXED:
        return None
    for rule in rules:
        if re.fullmatch(rule.pattern, name) or (path and re.fullmatch(rule.pattern, f"{path}:{name}")):
            return rule
    return None


def check_rules(rules: Sequence[Rule], parameters: Collection[tuple[str, Sequence[str]]]) -> None:
    """Checks that each rule matches a logical axis or a parameter axis.

    Args:
      rules: rules of the config.
      parameters: (path, logical axes) of each parameter.

    Raises:
      UserError: for the first rule without a match.
    """
    overridable = [name for name in RULES if name not in FIXED]
    for index, rule in enumerate(rules):
        names = {*overridable, *(f"{path}:{axis}" for path, axes in parameters for axis in axes if axis not in FIXED)}
        if not any(re.fullmatch(rule.pattern, name) for name in names):
            raise UserError(
                f"mesh.rules[{index}].pattern", f"{rule.pattern!r} matches no axis", nearest(rule.pattern, overridable)
            )


def mesh_axes(name: str) -> tuple[str, ...]:
    """Returns the mesh axes of a logical axis of activations under the current mesh config."""
    rule = find_rule(current_mesh_config().rules, name)
    return RULES[name] if rule is None else rule.axes


def axis_size(mesh, axes: Sequence[str]) -> int:
    """Returns the product of the sizes of the mesh axes: the number of shards of a dimension over them."""
    return math.prod(mesh.shape[axis] for axis in axes)


def sharding_axes(mesh, name: str, size: int, used: Collection[str] = ()) -> tuple[str, ...]:
    """Returns the mesh axes to shard an activation dimension over, or () if their product does not divide `size`.

    Args:
      mesh: mesh to shard over.
      name: logical axis of the dimension.
      size: size of the dimension.
      used: mesh axes to exclude, because other dimensions of the array are sharded over them.
    """
    axes = tuple(axis for axis in mesh_axes(name) if axis not in used and mesh.shape[axis] > 1)
    return axes if size % axis_size(mesh, axes) == 0 else ()


def spec_for(mesh, names: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """Returns the PartitionSpec of an activation with these logical axes.

    Dimensions that are not divisible by their mesh axes stay replicated. If two dimensions share a mesh axis, the later
    dimension gets it, so heads and hidden units take precedence over tokens.
    """
    parts: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for name, size in reversed(list(zip(names, shape, strict=True))):
        axes = sharding_axes(mesh, name, size, used)
        used |= set(axes)
        parts.append(axes or None)
    return PartitionSpec(*reversed(parts))


def shard(x: ArrayT, *names: str) -> ArrayT:
    """Constrains the sharding of an activation by its logical axes, e.g. `shard(x, "batch", "tokens", "width")`.

    Uses the mesh of `jax.set_mesh`. Returns `x` unchanged without a mesh or with a single device.
    """
    mesh = ambient_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec_for(mesh, names, x.shape))


assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)

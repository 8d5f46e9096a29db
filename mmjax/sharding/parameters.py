"""Shardings of parameters, derived from the logical axes in their metadata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.errors import UserError
from mmjax.sharding.mesh import Rule
from mmjax.sharding.rules import RULES, axis_size, check_rules, find_rule

MIN_FSDP_SIZE = 2**16
"""Parameters with fewer elements may stay replicated over fsdp, since sharding them costs more than it saves."""


def parameter(value: jax.Array, *axes: str) -> nnx.Param:
    """Creates an `nnx.Param` annotated with the logical axis of each dimension (see `mmjax.sharding.RULES`).

    Raises:
      ValueError: if the number of axes is not the rank of `value`.
    """
    if len(axes) != value.ndim:
        raise ValueError(f"expected one logical axis per dimension of shape {value.shape}, got {axes}")
    return nnx.Param(value, axes=axes)


def _spec(mesh: Mesh, path: str, axes: tuple[str, ...], shape: tuple[int, ...], rules: Sequence[Rule]) -> PartitionSpec:
    # A scanned stack adds leading layer axes, which are never sharded.
    axes = ("layers",) * (len(shape) - len(axes)) + axes
    parts: list[tuple[str, ...] | None] = []
    overrides = [find_rule(rules, name, path) for name in axes]
    for name, size, rule in zip(axes, shape, overrides, strict=True):
        mesh_axes = tuple(axis for axis in (RULES[name] if rule is None else rule.axes) if mesh.shape[axis] > 1)
        divides = size % axis_size(mesh, mesh_axes) == 0
        if "tensor" in mesh_axes and not divides:
            raise UserError(
                "mesh.tensor",
                f"{mesh.shape['tensor']} does not divide {name} of {path} {shape}",
                f"choose a divisor of {size}, or change the model",
            )
        parts.append(mesh_axes if mesh_axes and divides else None)
    used = [axis for part in parts if part for axis in part]
    if len(used) > len(set(used)):
        problem = f"two dimensions of {path} {axes} are split over one mesh axis"
        raise UserError("mesh.rules", problem, "set the axes of one of them to []")
    if "fsdp" not in used and mesh.shape["fsdp"] > 1 and math.prod(shape) >= MIN_FSDP_SIZE and not any(overrides):
        # fsdp does not divide the dimension that `RULES` assigns to it: shard the largest dimension that it divides.
        free = [i for i, part in enumerate(parts) if part is None and axes[i] != "layers"]
        free = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            parts[max(free, key=lambda i: shape[i])] = ("fsdp",)
    return PartitionSpec(*parts)


def parameter_shardings(mesh: Mesh, state: nnx.State, rules: Sequence[Rule] = ()) -> dict[str, Any]:
    """Returns the `NamedSharding` of each parameter, as a nested dict with the structure of the parameters.

    Args:
      mesh: mesh to shard over.
      state: variables made with `parameter`, abstract or concrete.
      rules: `MeshConfig.rules`, which override `RULES`.

    Raises:
      UserError: if the mesh axis `tensor` does not divide a dimension that is sharded over it, a rule matches no
        parameter or axis, or the rules shard two dimensions of a parameter over one mesh axis.
      ValueError: if a variable has no logical axes.
    """
    shardings: dict[Any, Any] = {}
    entries = [("/".join(map(str, path)), path, variable) for path, variable in nnx.to_flat_state(state)]
    check_rules(rules, [(name, _axes(name, variable)) for name, _, variable in entries])
    for name, path, variable in entries:
        node = shardings
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = NamedSharding(mesh, _spec(mesh, name, _axes(name, variable), variable.shape, rules))
    return shardings


def _axes(name: str, variable: nnx.Variable) -> tuple[str, ...]:
    axes = variable.get_metadata().get("axes")
    if axes is None:
        raise ValueError(f"parameter {name} has no logical axes: make it with `parameter(value, *axes)`")
    return axes


def unsharded_parameters(mesh: Mesh, shardings: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
    """Returns the paths of parameters of at least `MIN_FSDP_SIZE` elements that are not sharded over fsdp."""
    if mesh.shape["fsdp"] == 1:
        return []
    unsharded = []
    for (path, sharding), shape in zip(
        jax.tree_util.tree_leaves_with_path(shardings), jax.tree.leaves(shapes), strict=True
    ):
        # PartitionSpec stores a single mesh axis as a string, not as a tuple.
        axes = {axis for part in sharding.spec if part for axis in ((part,) if isinstance(part, str) else part)}
        if "fsdp" not in axes and math.prod(shape.shape) >= MIN_FSDP_SIZE:
            unsharded.append("/".join(str(key.key) for key in path))
    return unsharded

"""Parameters carry the names of their logical axes; from these follows where each of them lives."""

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

WHOLE_SIZE = 2**16
"""Parameters with fewer elements may stay whole on every device: splitting them costs more than it saves."""


def parameter(value: jax.Array, *axes: str) -> nnx.Param:
    """A trained array whose dimensions have the given logical axes (see `mmjax.sharding.RULES`)."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axes {axes} for an array of shape {value.shape}")
    return nnx.Param(value, axes=axes)


def _spec(mesh: Mesh, path: str, axes: tuple[str, ...], shape: tuple[int, ...], rules: Sequence[Rule]) -> PartitionSpec:
    # A scanned stack adds leading axes over layers, which are never split.
    axes = ("layers",) * (len(shape) - len(axes)) + axes
    parts: list[tuple[str, ...] | None] = []
    found = [find_rule(rules, name, path) for name in axes]
    for name, size, rule in zip(axes, shape, found, strict=True):
        split = tuple(axis for axis in (RULES[name] if rule is None else rule.axes) if mesh.shape[axis] > 1)
        divides = size % axis_size(mesh, split) == 0
        if "tensor" in split and not divides:
            raise UserError(
                "mesh.tensor",
                f"{mesh.shape['tensor']} does not divide {name} of {path} {shape}",
                f"choose a size that divides {size}, or change the model",
            )
        parts.append(split if split and divides else None)
    used = [axis for part in parts if part for axis in part]
    if len(used) > len(set(used)):
        raise UserError("mesh.rules", f"{path} {axes} would be split twice over one axis", "leave one of them whole")
    if "fsdp" not in used and mesh.shape["fsdp"] > 1 and math.prod(shape) >= WHOLE_SIZE and not any(found):
        # The named dimension does not divide: split the largest other one that does, rather than keep all of it.
        free = [i for i, part in enumerate(parts) if part is None and axes[i] != "layers"]
        free = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            parts[max(free, key=lambda i: shape[i])] = ("fsdp",)
    return PartitionSpec(*parts)


def parameter_shardings(mesh: Mesh, state: nnx.State, rules: Sequence[Rule] = ()) -> dict[str, Any]:
    """The sharding of each parameter, as a nested dict like that of the parameters.

    Args:
      mesh: where the parameters will live.
      state: variables made with `parameter`, abstract or real.
      rules: of the section `mesh`; they go before `RULES`.

    Raises:
      UserError: where the mesh's tensor axis does not divide a dimension that is split over it, or a rule matches
        nothing.
    """
    shardings: dict[Any, Any] = {}
    named = [("/".join(map(str, path)), path, variable) for path, variable in nnx.to_flat_state(state)]
    check_rules(rules, [(name, _axes(name, variable)) for name, _, variable in named])
    for name, path, variable in named:
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


def whole_parameters(mesh: Mesh, shardings: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
    """Names of the large parameters that fsdp could not split: each device keeps a whole copy of them."""
    if mesh.shape["fsdp"] == 1:
        return []
    whole = []
    for (path, sharding), shape in zip(
        jax.tree_util.tree_leaves_with_path(shardings), jax.tree.leaves(shapes), strict=True
    ):
        # JAX writes a single axis of a dimension as its name, not as a tuple.
        axes = {axis for part in sharding.spec if part for axis in ((part,) if isinstance(part, str) else part)}
        if "fsdp" not in axes and math.prod(shape.shape) >= WHOLE_SIZE:
            whole.append("/".join(str(key.key) for key in path))
    return whole

"""Model FLOPs, as used for model FLOPs utilisation (MFU).

Model FLOPs are three times the FLOPs of the forward pass's matmuls and convolutions: the backward pass has two matmuls
of the same size for each. Rematerialisation and elementwise operations do not count (Chowdhery et al., PaLM, 2022,
appendix B). FLOPs are counted in the jaxpr, where a scan has its trip count; XLA's `cost_analysis` counts a loop body
once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

TRAINING_PASSES = 3
"""Forward pass, gradient of the inputs, gradient of the weights."""


def training_flops(forward: Callable[..., Any], *arguments: Any) -> int:
    """Returns the model FLOPs of a train step whose loss is `forward(*arguments)`.

    Args:
      forward: the loss function.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: as in `matmul_flops`.
    """
    return TRAINING_PASSES * matmul_flops(forward, *arguments)


def step_flops(experiment: Any) -> int:
    """Returns the model FLOPs of the train step of an `mmjax.experiment.Experiment`, summed over all devices.

    Raises:
      ValueError: as in `matmul_flops`.
    """
    with jax.set_mesh(experiment.mesh):
        return training_flops(
            lambda parameters, batch: experiment.objective(parameters, batch)[0],
            experiment.shapes.parameters,
            experiment.abstract_batch,
        )


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the FLOPs of all matmuls and convolutions in `function(*arguments)` by tracing it.

    The count sums over all devices: a `shard_map` body counts once per device of its axes. A `cond` counts as its most
    expensive branch.

    Args:
      function: function to trace.
      *arguments: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: if a `while` loop contains matmuls, as its trip count is unknown.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def kernel_call_flops(equation: Any) -> int:
    """Returns the FLOPs of one call of a `pallas_call` equation on one device, including tile padding."""
    return _count_inside(equation)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        # The kernel has the input channels of one group only, so the count is correct for grouped convolutions.
        return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // out_channels)
    if name.startswith("dot_product_attention_fwd"):
        # cuDNN attention: two matmuls, of query [B, Q, H, D] with key [B, K, H, D] and of the weights with value.
        query, key = (variable.aval.shape for variable in equation.invars[:2])
        return 4 * math.prod(query) * key[1]
    if name.startswith("ragged_dot"):
        # Each row is multiplied by the matrix of its group only.
        rows, inner = equation.invars[0].aval.shape
        return 2 * rows * inner * equation.outvars[0].aval.shape[-1]
    declared = params.get("cost_estimate") if name == "pallas_call" else None
    if declared is not None:
        # The declared model FLOPs exclude the kernel's tile padding.
        return declared.flops
    return _count_inside(equation)


def _count_inside(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    counts = [_count(inner) for inner in nested_jaxprs(params)]
    if name == "cond":
        return max(counts, default=0)
    if name == "while" and sum(counts):
        raise ValueError("a while loop contains matmuls, and its trip count is unknown")
    return sum(counts) * _executions(name, params)


def _executions(name: str, params: dict[str, Any]) -> int:
    """Returns how many times the equation executes its nested jaxprs, summed over devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def nested_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an equation's parameters: loop bodies, branches and calls."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item

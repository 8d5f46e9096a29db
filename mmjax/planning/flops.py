"""Floating-point operations of a model, by the convention that utilisation is reported with.

Model FLOPs are those of the matrix products (and convolutions) of the forward pass times three: the backward pass makes
two products of the same size for each. What is computed again to save memory earns no credit, and neither does
elementwise work (Chowdhery et al., PaLM, 2022, appendix B). They are counted in the program as JAX traces it, where a
scan says how often its body runs; XLA's own `cost_analysis` counts the body once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

TRAINING_PASSES = 3
"""Forward, gradient of the inputs, gradient of the weights."""


def training_flops(forward: Callable[..., Any], *arguments: Any) -> int:
    """Model FLOPs of a training step whose loss is `forward(*arguments)`; the arguments may be abstract."""
    return TRAINING_PASSES * matmul_flops(forward, *arguments)


def step_flops(experiment: Any) -> int:
    """Those of a training step of an `mmjax.experiment.Experiment` on all devices. Raises as `matmul_flops` does."""
    with jax.set_mesh(experiment.mesh):
        return training_flops(
            lambda parameters, batch: experiment.objective(parameters, batch)[0],
            experiment.shapes.parameters,
            experiment.abstract_batch,
        )


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of all matrix products and convolutions in `function(*arguments)`, which is traced and not run.

    They are those of all devices together: what is inside a `shard_map` counts once for each device of its axes. Of a
    `cond` the most expensive branch counts.

    Args:
      arguments: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: where a product stands in a loop whose number of rounds only the data decides.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def kernel_flops(jaxpr: Any) -> dict[tuple[str, tuple[tuple[int, ...], ...]], int]:
    """{(name, shapes of the results): FLOPs of one run on one device} of all Pallas kernels in a traced program.

    The compiled program has the names and the shapes, but says nothing of what a kernel computes.
    """
    found = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            info = equation.params.get("name_and_src_info", equation.params.get("name"))
            shapes = tuple(tuple(out.aval.shape) for out in equation.outvars)
            found[getattr(info, "name", str(info)), shapes] = _count_inside(equation)
        else:
            for inner in _inner(equation.params):
                found |= kernel_flops(inner)
    return found


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, options = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _) = options["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[options["dimension_numbers"].rhs_spec[0]]
        # The kernel's own inputs are those of one group.
        return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // outputs)
    if name.startswith("dot_product_attention_fwd"):
        # cuDNN's: products of [batch, queries, heads, depth] with [batch, keys, heads, depth], and back.
        query, key = (each.aval.shape for each in equation.invars[:2])
        return 4 * math.prod(query) * key[1]
    if name.startswith("ragged_dot"):
        # Each row meets the matrix of its group alone.
        rows, inner = equation.invars[0].aval.shape
        return 2 * rows * inner * equation.outvars[0].aval.shape[-1]
    declared = options.get("cost_estimate") if name == "pallas_call" else None
    if declared is not None:
        # What the model asks for, whatever more the kernel multiplies to fill the chip's tiles.
        return declared.flops
    return _count_inside(equation)


def _count_inside(equation: Any) -> int:
    name, options = equation.primitive.name, equation.params
    parts = [_count(inner) for inner in _inner(options)]
    if name == "cond":
        return max(parts, default=0)
    if name == "while" and sum(parts):
        raise ValueError("a while loop holds matrix products, and nobody knows how often it runs")
    return sum(parts) * _rounds(name, options)


def _rounds(name: str, options: dict[str, Any]) -> int:
    """How often what is inside an equation runs, over all devices."""
    if name == "scan":
        return options["length"]
    if name == "shard_map":
        return math.prod(options["mesh"].shape[axis] for axis in options["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(options["grid_mapping"].grid)
    return 1


def _inner(options: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters: bodies, branches, calls."""
    for value in options.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each

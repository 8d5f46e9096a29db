"""Small programs compiled for TPU topologies that this machine does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.planning.hlo import Computation, Module
from mmjax.planning.kernels import Kernel, count_kernel_calls


def pallas_product(size: int, parts: int, name: str = "product", code=lambda x: x):
    """A Pallas kernel for the product of two matrices [size, size], in blocks of rows; `code` is applied to each."""
    from jax.experimental import pallas

    def kernel(x, w, out):
        out[...] = code(jnp.dot(x[...], w[...], preferred_element_type=jnp.float32))

    def product(x, w):
        return pallas.pallas_call(
            kernel,
            name=name,
            out_shape=jax.ShapeDtypeStruct((size, size), "float32"),
            grid=(parts,),
            in_specs=[
                pallas.BlockSpec((size // parts, size), lambda i: (i, 0)),
                pallas.BlockSpec((size, size), lambda i: (0, 0)),
            ],
            out_specs=pallas.BlockSpec((size // parts, size), lambda i: (i, 0)),
        )(x, w)

    return product


def product_kernel(size: int = 512, parts: int = 4, **options) -> Kernel:
    """The kernel of `pallas_product` as the planner sees it."""
    shape = jax.ShapeDtypeStruct((size, size), "bfloat16")
    jaxpr = jax.make_jaxpr(pallas_product(size, parts, **options))(shape, shape).jaxpr
    (found,) = count_kernel_calls(jaxpr)
    return found


def topology_mesh(name: str, **sizes: int) -> Mesh:
    """Mesh with these axes over the devices of a topology, in the topology's order."""
    import numpy as np

    from mmjax.planning import topology_devices

    devices = np.asarray(topology_devices(name)).reshape(tuple(sizes.values()))
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def compile_on(mesh: Mesh, function, *arguments):
    """Compiles `function` for a mesh; each argument is (shape, dtype, names of mesh axes or None)."""
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
        for shape, dtype, axes in arguments
    ]
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(*shapes).compile()
    return compiled, Module(compiled.as_text())


def execution_counts(module: Module) -> dict[str, int]:
    """Executions of each computation in one run of the program, without fusion computations.

    Raises:
      ValueError: if the trip count of a loop is unknown.
    """
    counts: dict[str, int] = {}

    def visit(computation: Computation, times: int) -> None:
        counts[computation.name] = counts.get(computation.name, 0) + times
        for instruction in computation.instructions:
            if instruction.opcode == "while":
                visit(module.computations[str(instruction.attribute("body"))], times * module.trip_count(instruction))
            for called in module.called_computations(instruction):
                visit(called, times)

    visit(module.entry, 1)
    return counts

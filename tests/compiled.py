"""Small programs compiled for TPU topologies that this machine does not have."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.planning.hlo import Module


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

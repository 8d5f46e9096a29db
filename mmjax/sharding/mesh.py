"""The device mesh, from config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from mmjax.errors import UserError

AXES = ("data", "fsdp", "tensor")
"""Mesh axes from the slowest links to the fastest: tensor parallelism talks most, so its devices are neighbours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left.

    Attributes:
      data: copies of the model, each on its share of the batch.
      fsdp: parameters, gradients and optimiser state are split over this axis as well as the batch.
      tensor: attention heads and hidden units are split over this axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"{self} has a size below 1; give sizes of at least 1, or -1 for what is left")
        if sizes.count(-1) > 1:
            raise ValueError(f"{self} has more than one -1; give all sizes but one")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices (default: all of them, over all processes) out as a mesh with the axes `AXES`.

    Raises:
      UserError: where the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        asked = " x ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)
        raise UserError(
            "mesh", f"{asked} does not divide {len(devices)} device(s)", f"make the sizes multiply to {len(devices)}"
        )
    # `jax.make_mesh` lays a mesh out along a TPU's links, but it takes whole sets of devices only.
    if len(devices) == jax.device_count():
        return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_kind(mesh: Mesh) -> str:
    """The platform of the mesh's devices, "tpu", "gpu" or "cpu", which may differ from the default backend's."""
    return mesh.devices.flat[0].platform

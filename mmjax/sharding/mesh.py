"""The device mesh, from config."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mmjax.config import AtLeast, Formerly
from mmjax.errors import UserError, nearest

AXES = ("slice", "data", "fsdp", "sequence", "tensor")
"""Mesh axes from the slowest links to the fastest: tensor parallelism talks most, so its devices are neighbours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One line that goes before the table of `mmjax.sharding.RULES`.

    Attributes:
      pattern: regular expression for the whole name of a logical axis, like "vocabulary", or of a parameter and its
        axis, like "encoders/text/.*:embed".
      axes: mesh axes that it is split over; [] for none.
    """

    pattern: str
    axes: tuple[str, ...]

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r}: {error}; give a regular expression") from error
        for axis in self.axes:
            if axis not in AXES:
                raise ValueError(f"the mesh has no axis {axis!r}; {nearest(axis, AXES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The section `mesh`: how devices share the work, and nothing that changes what is computed.

    One of the five sizes may be -1 and takes the devices that are left.

    Attributes:
      slice: copies of the model in several slices of a pod, or nodes, between which the links are slow; only gradients
        cross them.
      data: copies of the model, each on its share of the batch.
      fsdp: parameters, gradients and optimiser state are split over this axis as well as the batch.
      sequence: the tokens of each example are split over this axis, for long inputs.
      tensor: attention heads and hidden units are split over this axis.
      rules: what is split otherwise than the table of logical axes says; the first rule that matches holds.
      sequence_attention: how tokens see those of other devices: "ring" passes keys around, "all_to_all" exchanges
        tokens for heads, which `sequence` must divide.
      attention: what computes attention: "short" or "splash" (TPU), "cudnn" (GPU) or "xla"; "auto" takes the first
        that the devices have and that can compute the case, and logs why it could not take any.
      heartbeat_timeout: seconds that a process may be silent before the others give it up and stop.
      stall: seconds that a process may lag behind the step of the others before they stop.
    """

    slice: int = 1
    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    rules: tuple[Rule, ...] = ()
    sequence_attention: Literal["ring", "all_to_all"] = "ring"
    attention: Literal["auto", "short", "splash", "cudnn", "xla"] = "auto"
    heartbeat_timeout: Annotated[float, AtLeast(1), Formerly("patience")] = 60.0
    stall: Annotated[float, AtLeast(1)] = 1800.0

    def __post_init__(self):
        if any(size < 1 and size != -1 for size in self.sizes):
            raise ValueError(f"{self.spelled} has a size below 1; give sizes of at least 1, or -1 for what is left")
        if self.sizes.count(-1) > 1:
            raise ValueError(f"{self.spelled} has more than one -1; give all sizes but one")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def spelled(self) -> str:
        return spell(dict(zip(AXES, self.sizes, strict=True)))


def spell(sizes: dict[str, int]) -> str:
    """The axes that split anything, as "data=8 x tensor=4"."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "data=1"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices (default: all of them, over all processes) out as a mesh with the axes `AXES`.

    Raises:
      UserError: where the sizes do not multiply to the number of devices, or the devices do not lie in `slice` slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    known = math.prod(size for size in config.sizes if size != -1)
    sizes = tuple(len(devices) // known if size == -1 else size for size in config.sizes)
    if math.prod(sizes) != len(devices):
        raise UserError(
            "mesh",
            f"{config.spelled} does not divide {len(devices)} device(s)",
            f"make the sizes multiply to {len(devices)}",
        )
    return Mesh(_layout(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _layout(sizes: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """The devices in the shape `sizes`, neighbours of the mesh near each other."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    on_tpu = devices[0].platform == "tpu"
    if on_tpu and len(slices) not in (1, sizes[0]):
        raise UserError("mesh.slice", f"the devices lie in {len(slices)} slices", f"give {len(slices)}")
    try:
        if len(slices) > 1 and len(slices) == sizes[0]:
            across = (sizes[0], *(1,) * (len(sizes) - 1))
            within = (1, *sizes[1:])
            return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
        if on_tpu:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        # A part of a slice, for example, has no links that anything is known about.
        logging.warning("the mesh does not follow the links of the devices: %s", error)
    # Devices of one process are neighbours already.
    return np.asarray(devices).reshape(sizes)

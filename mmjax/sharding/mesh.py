"""Device mesh, built from the config section `mesh`."""

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
"""Mesh axes from the slowest links to the fastest; tensor parallelism communicates most, so it comes last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Override of one entry of the logical axis table `mmjax.sharding.RULES`.

    Attributes:
      pattern: regular expression that matches the full name of a logical axis, like "vocabulary", or a parameter path
        and its axis, like "encoders/text/.*:embed".
      axes: mesh axes to shard that dimension over; [] replicates it.
    """

    pattern: str
    axes: tuple[str, ...]

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r}: {error}; give a valid regular expression") from error
        for axis in self.axes:
            if axis not in AXES:
                raise ValueError(f"the mesh has no axis {axis!r}; {nearest(axis, AXES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Options of the section `mesh`: the layout of the devices. No option changes the computed values.

    At most one of the five sizes may be -1: it takes all remaining devices.

    Attributes:
      slice: replicas across pod slices or nodes, which are joined by slow links; only gradient sums cross them.
      data: data-parallel replicas; each gets its share of the batch.
      fsdp: fully sharded data parallelism: shards parameters, gradients, optimiser state and the batch.
      sequence: sequence parallelism: shards the tokens of each example, for long inputs.
      tensor: tensor parallelism: shards attention heads and hidden units.
      rules: overrides of the logical axis table; the first matching rule applies.
      sequence_attention: attention across the devices of `sequence`: "ring" passes keys and values around, "all_to_all"
        exchanges tokens for heads if `sequence` divides the number of heads per device, else it falls back to "ring".
      attention: attention kernel: "short" or "splash" (TPU), "cudnn" (GPU) or "xla"; "auto" selects the first one that
        supports the device and the shapes, and logs the reason if that is "xla".
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead and the others stop.
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
            raise ValueError(f"{self} has a size below 1; give sizes of at least 1, or -1 once for the rest")
        if self.sizes.count(-1) > 1:
            raise ValueError(f"{self} has more than one -1; give all sizes but one")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    def __str__(self) -> str:
        return format_mesh(dict(zip(AXES, self.sizes, strict=True)))


def format_mesh(sizes: dict[str, int]) -> str:
    """Formats the mesh axes of size above 1, like "data=8 x tensor=4"."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "data=1"


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds a mesh with the axes `AXES` from the devices (default: all devices of all processes).

    Raises:
      UserError: if the product of the sizes is not the number of devices, or `slice` is not the number of TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    fixed = math.prod(size for size in config.sizes if size != -1)
    sizes = tuple(len(devices) // fixed if size == -1 else size for size in config.sizes)
    if math.prod(sizes) != len(devices):
        raise UserError(
            "mesh",
            f"{config} does not divide {len(devices)} device(s)",
            f"make the sizes multiply to {len(devices)}",
        )
    return Mesh(_arrange_devices(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange_devices(sizes: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Arranges the devices as an array of shape `sizes` in which mesh neighbours are physically close."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    on_tpu = devices[0].platform == "tpu"
    if on_tpu and len(slices) not in (1, sizes[0]):
        raise UserError("mesh.slice", f"the devices span {len(slices)} slices", f"give {len(slices)}")
    try:
        if len(slices) > 1 and len(slices) == sizes[0]:
            within, across = (1, *sizes[1:]), (sizes[0], *(1,) * (len(sizes) - 1))
            return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
        if on_tpu:
            return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        # The topology is unknown for a part of a slice, for example.
        logging.warning("the mesh ignores the physical topology of the devices: %s", error)
    # In the default order, devices of one process are adjacent.
    return np.asarray(devices).reshape(sizes)

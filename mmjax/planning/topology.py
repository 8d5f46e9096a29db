"""Device topologies for ahead-of-time compilation without the hardware, by libtpu or JAX's CUDA plugin."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from mmjax.errors import UserError
from mmjax.host.libtpu import use_as_compiler
from mmjax.planning.gpu import GPUS, gpu_devices


@dataclasses.dataclass(frozen=True)
class Generation:
    """Topology constraints of a TPU generation.

    Attributes:
      rank: number of torus dimensions, 2 or 3.
      max_chips: chips of the largest slice.
      options: options for libtpu where its defaults differ from this generation's usual setup.
    """

    rank: int
    max_chips: int
    options: dict[str, str] = dataclasses.field(default_factory=dict)


# Largest slices: the pages "TPU v4" … "TPU7x" of Google's Cloud TPU documentation, as of 2026.
GENERATIONS = {
    # The two cores of a v4 chip form one JAX device ("megacore").
    "v4": Generation(3, 4096, {"chip_config_name": "megacore"}),
    "v5e": Generation(2, 256),
    "v5p": Generation(3, 6144),
    "v6e": Generation(2, 256),
    "tpu7x": Generation(3, 9216),
}

_INSTALL = "pip install -c constraints.txt -e '.[tpu]', which needs no TPU"


def topology_devices(name: str, num_slices: int = 1, where: str = "--topology") -> list[jax.Device]:
    """Returns compile-only devices of a topology. They can form a mesh, but cannot run programs.

    Args:
      name: TPU generation and chips along each dimension: "v5e:16x16", "v5p:8x8x4", "v6e:16x16", "tpu7x:4x4x4". A chip
        is one device; on tpu7x, two. GPUs: "h100:8" is one node of eight, "h100:4x8" four nodes of eight.
      num_slices: number of such slices, connected by the data-centre network.
      where: flag or config key of the name, for messages.

    Raises:
      UserError: if the topology does not exist or its compiler is not installed.
    """
    if num_slices < 1:
        raise UserError("--num_slices", f"{num_slices} is less than one slice", "give at least 1")
    if name.partition(":")[0] in GPUS:
        return gpu_devices(name, num_slices, where)
    generation, shape = parse_topology(name, where)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(where, "the TPU compiler is not installed", _INSTALL)
    use_as_compiler(os.environ)
    options: dict[str, object] = dict(GENERATIONS[generation].options)
    if math.prod(shape) < 4:
        # By default, libtpu assumes hosts with four chips and rejects slices smaller than a host.
        options["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        problem = f"libtpu rejects {name!r}: {str(error).splitlines()[0]}"
        raise UserError(where, problem, f"give an existing slice shape, like {_example(generation)}") from error


def parse_topology(name: str, where: str = "--topology") -> tuple[str, tuple[int, ...]]:
    """Parses a TPU topology like "v5e:16x16" into (generation, chips along each dimension).

    Raises:
      UserError: if the generation is unknown, or the shape is malformed or larger than the largest slice.
    """
    generation, _, sizes = name.partition(":")
    if generation not in GENERATIONS:
        known = ", ".join((*GENERATIONS, *GPUS))
        raise UserError(where, f"unknown chip generation {generation!r}", f"known are {known}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise UserError(where, f"{name!r} has no shape", f"write it like {_example(generation)}")
    shape = tuple(map(int, sizes.split("x")))
    rank, max_chips = GENERATIONS[generation].rank, GENERATIONS[generation].max_chips
    if len(shape) != rank:
        raise UserError(where, f"{name!r} does not have {rank} dimensions", f"write it like {_example(generation)}")
    if math.prod(shape) > max_chips:
        remedy = f"give a slice of at most {max_chips} chips, and more slices with --num_slices"
        raise UserError(where, f"{name!r} has {math.prod(shape)} chips, more than the largest slice", remedy)
    return generation, shape


def _example(generation: str) -> str:
    return f"{generation}:4x4" if GENERATIONS[generation].rank == 2 else f"{generation}:4x4x4"

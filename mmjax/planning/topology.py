"""Devices of a pod that is not here: what compilers in wheels, libtpu above all, compile for on any machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from mmjax.errors import UserError
from mmjax.planning.gpu import GPUS, gpu_devices


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU as topologies are made of it.

    Attributes:
      rank: how many numbers its topology has: 2 for a torus of two dimensions, 3 for one of three.
      largest: chips of its largest slice.
      options: of libtpu, where its defaults are not what users of this generation have.
    """

    rank: int
    largest: int
    options: dict[str, str] = dataclasses.field(default_factory=dict)


# Largest slices from the pages "TPU v4" … "TPU7x" of Google's Cloud TPU documentation, as of 2026.
GENERATIONS = {
    # Two cores of a v4 work as one device, "megacore", which is what JAX sees on such a machine.
    "v4": Generation(3, 4096, {"chip_config_name": "megacore"}),
    "v5e": Generation(2, 256),
    "v5p": Generation(3, 6144),
    "v6e": Generation(2, 256),
    "tpu7x": Generation(3, 9216),
}

_INSTALL = "pip install -c constraints.txt -e '.[tpu]', which needs no TPU"


def topology_devices(name: str, num_slices: int = 1, where: str = "--topology") -> list[jax.Device]:
    """The devices of a topology, to make a mesh of and to compile for; nothing can run on them.

    Args:
      name: generation and chips along each dimension: "v5e:16x16", "v5p:8x8x4", "v6e:16x16", "tpu7x:4x4x4". A chip is
        one device, but for tpu7x, where it is two. GPUs are counted by node: "h100:8", or "h100:4x8" for four nodes.
      num_slices: so many of them, connected by the data centre's network.
      where: what the user wrote the name in, for messages.

    Raises:
      UserError: where there is no such topology, or its compiler is not installed.
    """
    if num_slices < 1:
        raise UserError("--num_slices", f"{num_slices} slices have no chips", "give at least 1")
    if name.partition(":")[0] in GPUS:
        return gpu_devices(name, num_slices, where)
    generation, shape = parse_topology(name, where)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(where, "the TPU compiler is not installed", _INSTALL)
    _prepare_environment()
    options: dict[str, object] = dict(GENERATIONS[generation].options)
    if math.prod(shape) < 4:
        # Hosts hold four chips by default, and libtpu refuses to cut one in pieces.
        options["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        problem = f"libtpu has no {name!r}: {str(error).splitlines()[0]}"
        raise UserError(where, problem, f"give a shape that exists, like {_example(generation)}") from error


def parse_topology(name: str, where: str = "--topology") -> tuple[str, tuple[int, ...]]:
    """Returns (generation, chips along each dimension) of a TPU topology, "v5e:16x16", or raises a UserError."""
    generation, _, sizes = name.partition(":")
    if generation not in GENERATIONS:
        known = ", ".join((*GENERATIONS, *GPUS))
        raise UserError(where, f"unknown kind of chip {generation!r}", f"known are {known}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise UserError(where, f"{name!r} has no shape", f"write it like {_example(generation)}")
    shape = tuple(map(int, sizes.split("x")))
    rank, largest = GENERATIONS[generation].rank, GENERATIONS[generation].largest
    if len(shape) != rank:
        raise UserError(where, f"{name!r} is no torus of {rank} dimensions", f"write it like {_example(generation)}")
    if math.prod(shape) > largest:
        remedy = f"give a slice of at most {largest} chips, and several of them with --num_slices"
        raise UserError(where, f"{name!r} has {math.prod(shape)} chips, more than any slice of {generation}", remedy)
    return generation, shape


def _example(generation: str) -> str:
    return f"{generation}:4x4" if GENERATIONS[generation].rank == 2 else f"{generation}:4x4x4"


def _prepare_environment() -> None:
    """What libtpu reads when it is loaded, so that it neither asks Google's metadata server nor takes a TPU's lock."""
    for name, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)

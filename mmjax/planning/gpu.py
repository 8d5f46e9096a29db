"""GPU topologies for ahead-of-time compilation by JAX's CUDA plugin, which needs neither a GPU nor a driver."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re

import jax
from jax.experimental import topologies

from mmjax.errors import UserError

GPUS_PER_NODE = 8
"""Maximum number of GPUs per node, all connected by NVLink."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Properties that differ between Hopper cards with the same cores.

    Attributes:
      kind: `jax.Device.device_kind`.
      memory_bytes: total memory of the card.
      memory_bandwidth: bytes/s.
    """

    kind: str
    memory_bytes: int
    memory_bandwidth: int


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 84_929_347_584, 3_352_320_000_000),
    "h200": Gpu("NVIDIA H200", 150_120_000_000, 4_800_000_000_000),
}

# XLA `GpuTargetConfig` of Hopper SXM cards. Sources: CUDA's documentation of compute capability 9.0 and OpenXLA's
# xla/tools/hlo_opt/gpu_specs.
_TARGET = """
platform_name: "CUDA"
device_description_str: "{gpu.kind}"
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} patch: {cudnn[2]} }}
runtime_version {{ major: {cuda[0]} minor: {cuda[1]} patch: {cuda[2]} }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: {gpu.memory_bandwidth}
  device_memory_size: {gpu.memory_bytes}
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
_INSTALL = "pip install -c constraints.txt -e '.[cuda]', which needs no GPU"


def gpu_devices(name: str, nodes: int, where: str) -> list[jax.Device]:
    """Returns the devices of `nodes` copies of a GPU topology.

    Args:
      name: "h100:8" for one node of eight GPUs, "h100:4x8" for four.
      nodes: number of copies of this topology.
      where: flag or config key of the name, for messages.

    Raises:
      UserError: if the topology is malformed or the CUDA plugin is not installed.
    """
    generation, _, sizes = name.partition(":")
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", sizes):
        problem = f"{name!r} has no valid number of GPUs"
        raise UserError(where, problem, f"write it like {generation}:8, or {generation}:4x8 for 4 nodes of 8")
    *num_nodes, gpus = map(int, sizes.split("x"))
    if gpus > GPUS_PER_NODE:
        remedy = f"write it like {generation}:{-(-gpus // GPUS_PER_NODE)}x{GPUS_PER_NODE}"
        raise UserError(where, f"{name!r} has {gpus} GPUs in a node, nodes have at most {GPUS_PER_NODE}", remedy)
    cuda = next((major for major in (13, 12) if importlib.util.find_spec(f"jax_cuda{major}_plugin")), None)
    if cuda is None:
        raise UserError(where, "the GPU compiler is not installed", _INSTALL)
    suffix = f"-cu{cuda}" if cuda == 12 else ""
    target = _TARGET.format(
        gpu=GPUS[generation],
        cuda=_version(f"nvidia-cuda-runtime{suffix}", where),
        cudnn=_version(f"nvidia-cudnn-cu{cuda}", where),
    )
    shape = f"1x{nodes * (num_nodes[0] if num_nodes else 1)}x{gpus}"
    return list(topologies.get_topology_desc(name, platform="cuda", topology=shape, target_config=target).devices)


def _version(package: str, where: str) -> tuple[int, ...]:
    """Returns (major, minor, patch) of an installed NVIDIA wheel."""
    try:
        parts = importlib.metadata.version(package).split(".")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(where, f"the GPU compiler needs the package {package}", _INSTALL) from error
    return tuple(int(part) for part in (*parts, "0", "0")[:3])

"""Accelerator specifications: peak FLOP/s, memory, clock and bandwidths of each device kind.

A device is a JAX device: a whole chip, except on TPU7x, where it is half a chip.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification of one device.

    Attributes:
      name: generation, as in topology names like "v5e:4x4".
      peak_flops: dense bfloat16 FLOP/s.
      memory_bytes: HBM bytes that the compiler makes available to a program.
      memory_bandwidth: HBM bytes/s.
      clock_hz: clock of the matrix units, which converts the compiler's cycles to seconds; None if the compiler
        estimates no cycles.
      link_bandwidth: bytes/s that one inter-chip link reaches, in one direction; on GPUs, NVLink.
      hop_seconds: latency of one inter-chip link; 0 if unknown.
      network_bandwidth: bytes/s of the data-centre network, per device.
      ring_multiple: torus dimensions whose size is a multiple of this wrap around to a ring.
      devices_per_chip: number of JAX devices per chip.
      cores: TensorCores of a device, which share the grid of a kernel.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    clock_hz: float | None
    link_bandwidth: float
    hop_seconds: float
    network_bandwidth: float
    ring_multiple: int
    devices_per_chip: int = 1
    cores: int = 1


def _gibibytes(count: float) -> int:
    return int(count * 2**30)


_HOP = 1e-6

# Sources. Peak FLOP/s, memory bandwidth and network: the pages "TPU v4" (275 TFLOP/s, 1,228 GB/s), "TPU v5e", "TPU
# v5p", "TPU v6e" and "TPU7x" of Google's Cloud TPU documentation, as of 2026. The network bandwidth per device of v4
# and v5e is computed from the data of their hosts and pods. Links: Austin et al., How to Scale Your Model (2025), part
# 2, one-way bandwidth per ICI link: 45 GB/s (v4, v5e) and 90 GB/s (v5p, v6e, TPU7x), nine tenths of the nominal rates
# in the documentation; part 3 gives about 1 us per hop. Clock: peak FLOP/s over the FLOPs per cycle of the matrix
# units, 2 x 128 x 128 x 4 for v5e, twice that for v4 and v5p, 2 x 256 x 256 x 4 for v6e and half a TPU7x; large matmuls
# reach 78 to 94 % of the peak in the compiler's estimates (`tests/test_hlo.py`). Memory: the limit that libtpu 0.0.42
# reports when a program does not fit. H100: NVIDIA's data sheet of the SXM card, 450 GB/s NVLink and one 400 Gb/s
# network card per GPU. The slower PCIe H100 has no entry.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, _gibibytes(30.75), 1228e9, 1.05e9, 45e9, _HOP, 6.25e9, 4, cores=2),
    "TPU v5 lite": Chip("v5e", 197e12, _gibibytes(15.75), 819e9, 1.503e9, 45e9, _HOP, 3.125e9, 16),
    "TPU v5": Chip("v5p", 459e12, _gibibytes(95.74), 2765e9, 1.751e9, 90e9, _HOP, 6.25e9, 4, cores=2),
    "TPU v6 lite": Chip("v6e", 918e12, _gibibytes(31.25), 1638e9, 1.751e9, 90e9, _HOP, 12.5e9, 16),
    "TPU7x": Chip("tpu7x", 2307e12 / 2, _gibibytes(94.75), 3690e9, 2.2e9, 90e9, _HOP, 6.25e9, 4, devices_per_chip=2),
    "NVIDIA H100 80GB HBM3": Chip("h100", 989e12, _gibibytes(79.1), 3350e9, None, 450e9, 0, 50e9, 1),
    "NVIDIA H200": Chip("h200", 989e12, _gibibytes(140.0), 4800e9, None, 450e9, 0, 50e9, 1),
}


def find_chip(device_kind: str) -> Chip | None:
    """Looks up a chip by `jax.Device.device_kind`; None if it is not in `CHIPS`."""
    # The longest matching prefix: "TPU v5" is also a prefix of "TPU v5 lite".
    matches = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(matches, key=len)] if matches else None


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a device by `jax.Device.device_kind`; None if it is not in `CHIPS`."""
    chip = find_chip(device_kind)
    return chip.peak_flops if chip else None


def devices_per_chip(topology: str | None) -> int:
    """Returns the number of JAX devices per chip of a topology like "tpu7x:4x4x4"; 1 by default."""
    generation = (topology or "").partition(":")[0]
    return next((chip.devices_per_chip for chip in CHIPS.values() if chip.name == generation), 1)

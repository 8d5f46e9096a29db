"""What one device of each kind can do. A device is what JAX calls one: a whole chip, but half of a TPU7x."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: as in a topology's name.
      peak_flops: dense bfloat16 FLOP/s.
      memory_bytes: what the compiler lets a program use.
      memory_bandwidth: bytes/s of the main memory.
      clock: Hz of the matrix units, for the compiler's cycles; None where it gives none.
      link: bytes/s in one direction of one link of a chip to a neighbour.
      network: bytes/s of the data centre's network, its share for one device.
      wraps: a dimension of so many chips, or a multiple, is closed to a ring.
      per_chip: devices of one chip.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    clock: float | None
    link: float
    network: float
    wraps: int
    per_chip: int = 1


def _gibibytes(count: float) -> int:
    return int(count * 2**30)


# Peaks, memory bandwidths, links and networks: the pages "TPU v4" (275 TFLOP/s, 1,228 GB/s), "TPU v5e", "TPU v5p",
# "TPU v6e" and "TPU7x" of Google's Cloud TPU documentation, read in 2026. They give the links of a chip together and in
# both directions: 600 (v4), 400 (v5e), 1,200 (v5p), 800 (v6e) and 1,200 GB/s (TPU7x), over 6, 4, 6, 4 and 6 links. The
# network's share of v4 and v5e is that of their hosts and pods. Clocks: the peak over the FLOPs of the matrix units in
# a cycle, 2 x 128 x 128 x 4 for a v5e, twice that for v4 and v5p, 2 x 256 x 256 x 4 for v6e and half a TPU7x; the
# compiler's estimates for large products come to 78 to 94 % of it (`tests/test_cycles.py`). Memory: what libtpu 0.0.42
# says is available in the message for a program that does not fit. H100: NVIDIA's data sheet of the SXM card, NVLink
# with 450 GB/s and one 400 Gb/s network card a GPU; an H100 with PCIe is slower, and none of these.
CHIPS = {
    "TPU v4": Chip("v4", 275e12, _gibibytes(30.75), 1228e9, 1.05e9, 50e9, 6.25e9, 4),
    "TPU v5 lite": Chip("v5e", 197e12, _gibibytes(15.75), 819e9, 1.503e9, 50e9, 3.125e9, 16),
    "TPU v5": Chip("v5p", 459e12, _gibibytes(95.74), 2765e9, 1.751e9, 100e9, 6.25e9, 4),
    "TPU v6 lite": Chip("v6e", 918e12, _gibibytes(31.25), 1638e9, 1.751e9, 100e9, 12.5e9, 16),
    "TPU7x": Chip("tpu7x", 2307e12 / 2, _gibibytes(94.75), 3690e9, 2.2e9, 100e9, 6.25e9, 4, per_chip=2),
    "NVIDIA H100 80GB HBM3": Chip("h100", 989e12, _gibibytes(79.1), 3350e9, None, 450e9, 50e9, 1),
    "NVIDIA H200": Chip("h200", 989e12, _gibibytes(140.0), 4800e9, None, 450e9, 50e9, 1),
}


def find_chip(device_kind: str) -> Chip | None:
    """What `jax.Device.device_kind` names; None where it is none of `CHIPS`."""
    found = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(found, key=len)] if found else None


def peak_flops(device_kind: str) -> float | None:
    """The bfloat16 peak of a device in FLOP/s, from `jax.Device.device_kind`; None where it is not known here."""
    chip = find_chip(device_kind)
    return chip.peak_flops if chip else None


def devices_per_chip(topology: str | None) -> int:
    """Devices of a chip of a topology, by its name."""
    generation = (topology or "").partition(":")[0]
    return next((chip.per_chip for chip in CHIPS.values() if chip.name == generation), 1)

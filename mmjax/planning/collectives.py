"""Collectives of a compiled program: kind, bytes, mesh axes and time.

Times assume the best known algorithm on a torus (Austin et al., How to Scale Your Model, 2025, part 3): all links of
the crossed axes are busy in both directions, and each byte takes the shortest path. The time inside a slice is
max(bytes / bandwidth, hops x latency of a link).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from mmjax.planning.chips import Chip
from mmjax.planning.hlo import Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One execution of a collective.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes that it crosses.
      bytes: size on one chip, of the result for an all-gather, else of the array that is reduced, scattered or sent.
      seconds: time on the links.
      op_name: JAX name stack of the operation.
      backwards: True for a permute towards smaller device indices, which uses the links of the other direction.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    seconds: float
    op_name: str
    backwards: bool = False

    @property
    def links(self) -> list[str]:
        """Names of the busy links: "axis>" and "axis<" for each axis; one direction only for a permute."""
        directions = "<>" if self.kind != "collective-permute" else "<" if self.backwards else ">"
        return [axis + direction for axis in self.axes for direction in directions]


def collectives_of(module: Module, instruction: Instruction, mesh: Mesh, chip: Chip) -> Iterator[Collective]:
    """Yields the collectives in an instruction, including those nested in fusions and async wrappers."""
    for inner in module.walk(instruction):
        if inner.opcode == "recv":
            yield from _cross_slice(inner, mesh, chip)
            continue
        kind = inner.opcode.removesuffix("-start")
        if kind == "ragged-all-to-all":
            kind = "all-to-all"
        if kind not in KINDS:
            continue
        # On TPUs a reduce-scatter is a fusion of an all-reduce with a slice.
        if kind == "all-reduce" and str(instruction.attribute("calls")).startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        groups = replica_groups(inner, mesh.size)
        if groups is None or groups.shape[1] == 1:
            continue
        num_bytes = _operand_bytes(module, inner) * (groups.shape[1] if kind == "all-gather" else 1)
        members = _widest_group(groups, mesh)
        axes = crossed_axes(members, mesh)
        if kind == "collective-permute":
            seconds = _permute_seconds(groups, num_bytes, mesh, chip)
        else:
            seconds = collective_seconds(kind, num_bytes, members, mesh, chip)
        # Take the majority of the pairs: the pair that closes the ring has the opposite direction.
        backwards = kind == "collective-permute" and bool((groups[:, 1] < groups[:, 0]).mean() > 0.5)
        yield Collective(kind, axes, num_bytes, seconds, inner.op_name or instruction.op_name, backwards)


def _cross_slice(instruction: Instruction, mesh: Mesh, chip: Chip) -> Iterator[Collective]:
    """Yields the collective of a `recv` over the data-centre network: each chip transfers its part between slices."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if not transfer:
        return
    kind = transfer[1].lower().replace("_", "-")
    kind = kind if kind in KINDS else "collective-permute"
    slice_indices = np.array([getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat])
    slices = len(set(slice_indices))
    # The first device of another slice.
    other = int(np.argmax(slice_indices != slice_indices[0]))
    axes = crossed_axes(np.array([0, other]), mesh)
    num_bytes = instruction.arrays[0].bytes
    share = (slices - 1) / slices * (2 if kind == "all-reduce" else 1)
    yield Collective(kind, axes, num_bytes, num_bytes * share / chip.network_bandwidth, instruction.op_name)


def _operand_bytes(module: Module, instruction: Instruction) -> int:
    """Returns the bytes of the operands on one chip.

    The size of the result is unsuitable: for async starts, its shape depends on the kind.
    """
    return sum(array.bytes for name in instruction.operands for array in module.instructions[name].arrays)


def replica_groups(instruction: Instruction, devices: int) -> np.ndarray | None:
    """Parses replica groups in any of XLA's forms.

    Args:
      instruction: the collective.
      devices: number of devices of the mesh.

    Returns:
      Device indices in mesh order, [groups, members]; [pairs, (source, target)] for a `collective-permute`. None if the
      instruction has no groups.
    """
    text = instruction.attributes
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
    if pairs:
        return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
    lists = re.search(r"replica_groups=\{(\{.*?\})\}", text)
    if lists:
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", lists[1])])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_integers(iota[1]))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? ?\{([^}]*)\}", text)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = np.arange(math.prod(sizes.values()))
        order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", named[2] or "")
        if order:
            ids = _iota(order[1], order[2])
        crossed = re.findall(r"'([^']+)'", named[3])
        return _along(ids.reshape(tuple(sizes.values())), [list(sizes).index(name) for name in crossed])
    if re.search(r"replica_groups=\{\}", text):
        return np.arange(devices)[None]
    return None


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Returns the device indices of an iota group list: `arange` reshaped to `shape`, with axes permuted by `order`."""
    sizes = _integers(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_integers(order)) if order else ids


def _along(ids: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Reshapes an array of device indices to [groups, members], with members along `axes`."""
    others = [axis for axis in range(ids.ndim) if axis not in axes]
    return ids.transpose(*others, *axes).reshape(-1, math.prod(ids.shape[axis] for axis in axes))


def _widest_group(groups: np.ndarray, mesh: Mesh) -> np.ndarray:
    """Returns the group that crosses the most mesh axes. Groups differ in this only if they are pairs of a permute."""
    return max(groups, key=lambda group: len(crossed_axes(group, mesh)))


def crossed_axes(members: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes along which these device indices differ."""
    coordinates = np.array(np.unravel_index(members, mesh.devices.shape))
    return tuple(name for name, row in zip(mesh.axis_names, coordinates, strict=True) if len(set(row)) > 1)


@dataclasses.dataclass(frozen=True)
class GroupTopology:
    """Physical connections of a group of devices.

    Attributes:
      slices: number of slices, or GPU hosts, that are connected only by the data-centre network.
      dimensions: (chips, ring) along each torus dimension that the group spans; ring is False for a line.
      cores: devices of the group per chip.
    """

    slices: int
    dimensions: tuple[tuple[int, bool], ...]
    cores: int

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.slices * self.cores * math.prod(chips for chips, _ in self.dimensions)

    @property
    def hops(self) -> int:
        """Number of links on the path to the farthest member: half of each ring, the whole length of each line."""
        return sum(chips // 2 if ring else chips - 1 for chips, ring in self.dimensions)

    def bandwidth(self, chip: Chip) -> float:
        """Returns the bytes/s that a device receives in a gather over all dimensions at once."""
        if chip.clock_hz is None:
            return chip.link_bandwidth
        # Other devices of the chip, which are not in the group, use the same links for their own groups.
        link = chip.link_bandwidth * self.cores / chip.devices_per_chip
        # A chip in a ring receives from both sides, a chip at the end of a line from one.
        return sum(link * (2 if ring else 1) for _, ring in self.dimensions)


def group_topology(members: np.ndarray, mesh: Mesh, chip: Chip) -> GroupTopology:
    """Returns the topology of the devices with these mesh indices, from their torus coordinates or GPU hosts."""
    devices, all_devices = mesh.devices.flat[members], mesh.devices.flat
    if all_devices[0].platform != "tpu":
        # NVLink connects the GPUs of a host.
        hosts = len({device.process_index for device in devices})
        inside = len(devices) // hosts
        return GroupTopology(hosts, ((inside, True),) if inside > 1 else (), 1)
    slices = {getattr(device, "slice_index", 0) or 0 for device in devices}
    coordinates = np.array([device.coords for device in devices])
    extents = np.array([device.coords for device in all_devices]).max(axis=0) + 1
    dimensions = []
    for row, extent in zip(coordinates.T, extents, strict=True):
        count = len(set(row))
        if count > 1:
            # A part of a ring is a line. A strided group sends through the chips that it skips.
            dimensions.append((count, bool(count == extent and extent % chip.ring_multiple == 0)))
    cores = len({getattr(device, "core_on_chip", 0) for device in devices})
    return GroupTopology(len(slices), tuple(dimensions), cores)


def collective_seconds(kind: str, num_bytes: int, members: np.ndarray, mesh: Mesh, chip: Chip) -> float:
    """Returns the time of a collective in seconds.

    Args:
      kind: one of `KINDS`.
      num_bytes: size of the array on one device, as `Collective.bytes`.
      members: device indices of a group.
      mesh: mesh of the devices.
      chip: specification of the devices.
    """
    topology = group_topology(members, mesh, chip)
    seconds, inside = 0.0, topology.size // topology.slices
    if inside > 1:
        share = (inside - 1) / inside
        bandwidth = topology.bandwidth(chip)
        if not topology.dimensions:
            # The two devices of one chip share its HBM.
            bandwidth = chip.memory_bandwidth / 2
        # An all-reduce is a reduce-scatter and an all-gather.
        rounds = 2 if kind == "all-reduce" else 1
        if kind == "all-to-all":
            # A byte crosses n / 4 links of a ring of n chips on average, n / 3 of a line, with all links busy.
            hops = max((n / 4 if ring else n / 3) for n, ring in topology.dimensions) if topology.dimensions else 1.0
            seconds = num_bytes * share * max(1.0, hops) / bandwidth
        else:
            seconds = rounds * num_bytes * share / bandwidth
        seconds = max(seconds, rounds * topology.hops * chip.hop_seconds)
    if topology.slices > 1:
        # Each chip sends its part of the slice's data to the other slices.
        part = num_bytes / inside if kind in ("all-reduce", "all-gather", "reduce-scatter") else num_bytes
        share = (topology.slices - 1) / topology.slices
        seconds += part * share / chip.network_bandwidth * (2 if kind == "all-reduce" else 1)
    return seconds


def _permute_seconds(pairs: np.ndarray, num_bytes: int, mesh: Mesh, chip: Chip) -> float:
    """Returns the time of a permute: all devices send at once and share links, so the longest path counts."""
    worst, devices = 0.0, mesh.devices.flat
    if devices[0].platform != "tpu":
        near = all(devices[source].process_index == devices[target].process_index for source, target in pairs)
        return num_bytes / (chip.link_bandwidth if near else chip.network_bandwidth)
    extents = np.array([device.coords for device in devices]).max(axis=0) + 1
    for source, target in pairs[:4096]:
        first, second = devices[source], devices[target]
        if (getattr(first, "slice_index", 0) or 0) != (getattr(second, "slice_index", 0) or 0):
            worst = max(worst, num_bytes / chip.network_bandwidth)
            continue
        hops = np.abs(np.array(first.coords) - np.array(second.coords))
        rings = extents % chip.ring_multiple == 0
        hops = np.where(rings, np.minimum(hops, extents - hops), hops)
        length = max(1, int(hops.sum()))
        worst = max(worst, length * max(num_bytes / chip.link_bandwidth, chip.hop_seconds))
    return worst

"""The collectives of a compiled program: what each moves over which axes of the mesh, and how long that takes.

The seconds are those of the best known algorithm on a torus (Austin et al., How to Scale Your Model, 2025, part 3):
all links of the axes that are crossed work in both directions, and each byte goes the shortest way.
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
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      axes: names of the mesh axes that it crosses.
      bytes: of the array on one chip: the whole one that is gathered, reduced, scattered or sent.
      seconds: of one run, at the links' full bandwidth.
      operation: the name that JAX gave it.
      backwards: for a permute whether it goes to smaller numbers; each direction has links of its own.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    seconds: float
    operation: str
    backwards: bool = False

    @property
    def links(self) -> list[str]:
        """Names of the links that it keeps busy: both directions of each axis, but for a permute."""
        directions = "<>" if self.kind != "collective-permute" else "<" if self.backwards else ">"
        return [axis + direction for axis in self.axes for direction in directions]


def collectives_of(module: Module, instruction: Instruction, mesh: Mesh, chip: Chip) -> Iterator[Collective]:
    """The collectives in one instruction of the program's steps, whatever wraps them."""
    for inner in module.inside(instruction):
        if inner.opcode == "recv":
            yield from _between_slices(inner, mesh, chip)
            continue
        kind = inner.opcode.removesuffix("-start")
        if kind == "ragged-all-to-all":
            kind = "all-to-all"
        if kind not in KINDS:
            continue
        # On a TPU a reduce-scatter is a fusion of an all-reduce with the slice that a chip keeps.
        if kind == "all-reduce" and str(instruction.attribute("calls")).startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        groups = replica_groups(inner, mesh.size)
        if groups is None or groups.shape[1] == 1:
            continue
        moved = _bytes(module, inner) * (groups.shape[1] if kind == "all-gather" else 1)
        members = _widest(groups, mesh)
        axes = crossed_axes(members, mesh)
        if kind == "collective-permute":
            seconds = _permute_seconds(groups, moved, mesh, chip)
        else:
            seconds = collective_seconds(kind, moved, members, mesh, chip)
        # A ring that goes backwards has one pair that does not, and the other way round.
        backwards = kind == "collective-permute" and bool((groups[:, 1] < groups[:, 0]).mean() > 0.5)
        yield Collective(kind, axes, moved, seconds, inner.operation or instruction.operation, backwards)


def _between_slices(instruction: Instruction, mesh: Mesh, chip: Chip) -> Iterator[Collective]:
    """What crosses from slice to slice, over the network: a chip's part of what its slice has put together."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if not transfer:
        return
    kind = transfer[1].lower().replace("_", "-")
    kind = kind if kind in KINDS else "collective-permute"
    numbers = np.array([getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat])
    slices = len(set(numbers))
    # The counterpart of the first device in another slice.
    other = int(np.argmax(numbers != numbers[0]))
    axes = crossed_axes(np.array([0, other]), mesh)
    moved = instruction.arrays[0].bytes
    share = (slices - 1) / slices * (2 if kind == "all-reduce" else 1)
    yield Collective(kind, axes, moved, moved * share / chip.network, instruction.operation)


def _bytes(module: Module, instruction: Instruction) -> int:
    """Of the operands on one chip; what a collective that is only started returns differs from kind to kind."""
    return sum(array.bytes for name in instruction.operands for array in module.instructions[name].arrays)


def replica_groups(instruction: Instruction, devices: int) -> np.ndarray | None:
    """[groups, members], numbers of devices in the mesh's order, from any of the forms that XLA writes them in.

    For a `collective-permute` the pairs of source and target. None where the instruction names none.
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
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))
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


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _iota(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_numbers(order)) if order else ids


def _along(ids: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """[groups, members] of an array of device numbers, where the members differ along `axes`."""
    others = [axis for axis in range(ids.ndim) if axis not in axes]
    return ids.transpose(*others, *axes).reshape(-1, math.prod(ids.shape[axis] for axis in axes))


def _widest(groups: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The group that crosses most axes: they are alike but for permutations, whose pairs may differ."""
    return max(groups, key=lambda group: len(crossed_axes(group, mesh)))


def crossed_axes(members: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which these devices differ."""
    places = np.array(np.unravel_index(members, mesh.devices.shape))
    return tuple(name for name, row in zip(mesh.axis_names, places, strict=True) if len(set(row)) > 1)


@dataclasses.dataclass(frozen=True)
class Reach:
    """How a group of devices is connected.

    Attributes:
      slices: parts of the group that only the data centre's network connects.
      dimensions: (chips, whether they form a ring) along each dimension of the torus that the group extends over.
      cores: devices of one chip in the group.
    """

    slices: int
    dimensions: tuple[tuple[int, bool], ...]
    cores: int

    @property
    def size(self) -> int:
        return self.slices * self.cores * math.prod(chips for chips, _ in self.dimensions)

    def bandwidth(self, chip: Chip) -> float:
        """Bytes/s that a chip receives in a gather over all the dimensions at once."""
        if chip.clock is None:
            return chip.link
        # Where only one of a chip's devices is in the group, the others are in groups that use the same links.
        link = chip.link * self.cores / chip.per_chip
        # A ring brings bytes from both sides; at the end of a line they come from one.
        return sum(link * (2 if ring else 1) for _, ring in self.dimensions)


def reach(members: np.ndarray, mesh: Mesh, chip: Chip) -> Reach:
    """How the devices with these numbers in the mesh are connected, from their coordinates in the torus."""
    devices, all_devices = mesh.devices.flat[members], mesh.devices.flat
    if all_devices[0].platform != "tpu":
        # GPUs: those of a host are connected with each other.
        hosts = len({device.process_index for device in devices})
        inside = len(devices) // hosts
        return Reach(hosts, ((inside, True),) if inside > 1 else (), 1)
    slices = {getattr(device, "slice_index", 0) or 0 for device in devices}
    places = np.array([device.coords for device in devices])
    extents = np.array([device.coords for device in all_devices]).max(axis=0) + 1
    dimensions = []
    for row, extent in zip(places.T, extents, strict=True):
        count = len(set(row))
        if count > 1:
            # A part of a ring is a line. What skips chips has to pass them: as slow as with all of them.
            dimensions.append((count, bool(count == extent and extent % chip.wraps == 0)))
    cores = len({getattr(device, "core_on_chip", 0) for device in devices})
    return Reach(len(slices), tuple(dimensions), cores)


def collective_seconds(kind: str, moved: int, members: np.ndarray, mesh: Mesh, chip: Chip) -> float:
    """Seconds of a collective over the devices with these numbers, whose array has `moved` bytes on each of them."""
    where = reach(members, mesh, chip)
    seconds, inside = 0.0, where.size // where.slices
    if inside > 1:
        share = (inside - 1) / inside
        bandwidth = where.bandwidth(chip)
        if not where.dimensions:
            # Two cores of one chip, which share a memory.
            bandwidth = chip.memory_bandwidth / 2
        if kind == "all-to-all":
            # On a ring of n chips a byte crosses n / 4 links on average, on a line n / 3, and no link stands still.
            longest = max((n / 4 if ring else n / 3) for n, ring in where.dimensions) if where.dimensions else 1.0
            seconds += moved * share * max(1.0, longest) / bandwidth
        else:
            seconds += moved * share / bandwidth * (2 if kind == "all-reduce" else 1)
    if where.slices > 1:
        # Each chip sends its part of what its slice has to the other slices.
        part = moved / inside if kind in ("all-reduce", "all-gather", "reduce-scatter") else moved
        share = (where.slices - 1) / where.slices
        seconds += part * share / chip.network * (2 if kind == "all-reduce" else 1)
    return seconds


def _permute_seconds(pairs: np.ndarray, moved: int, mesh: Mesh, chip: Chip) -> float:
    """All send at once, to a neighbour or further: the longest way counts, as those between share its links."""
    worst, devices = 0.0, mesh.devices.flat
    if devices[0].platform != "tpu":
        near = all(devices[source].process_index == devices[target].process_index for source, target in pairs)
        return moved / (chip.link if near else chip.network)
    extents = np.array([device.coords for device in devices]).max(axis=0) + 1
    for source, target in pairs[:4096]:
        first, second = devices[source], devices[target]
        if (getattr(first, "slice_index", 0) or 0) != (getattr(second, "slice_index", 0) or 0):
            worst = max(worst, moved / chip.network)
            continue
        steps = np.abs(np.array(first.coords) - np.array(second.coords))
        rings = extents % chip.wraps == 0
        steps = np.where(rings, np.minimum(steps, extents - steps), steps)
        worst = max(worst, moved * max(1, int(steps.sum())) / chip.link)
    return worst

"""Files of point clouds: PCD (ASCII and binary), the BIN files of KITTI, and NPY."""

from __future__ import annotations

import pathlib
import re

import numpy as np

from mmjax.modalities.raw_files import NPY, read_npy

MOST_COLUMNS = 256
"""What has more is no list of points."""

SUFFIXES = (".pcd", ".bin", ".npy")
_PLACE = ("x", "y", "z")
_COLOURS = ("rgb", "rgba")
_TYPES = {"F": {4: "<f4", 8: "<f8"}, "I": {n: f"<i{n}" for n in (1, 2, 4, 8)}, "U": {n: f"<u{n}" for n in (1, 2, 4, 8)}}


def read_points(data: bytes, name: str) -> np.ndarray:
    """float64 [n, 3 + features] of the bytes of a file: x, y, z and whatever else the file has of a point.

    Args:
      name: of the file. BIN has no mark of its own but its suffix: it is x, y, z and intensity, float32.

    Raises:
      ValueError: if the file is of another form, is cut short, or has no points.
    """
    # First, as any bytes may stand at its beginning.
    if pathlib.PurePath(name.lower()).suffix == ".bin":
        # nuScenes adds the number of the laser's ring, and a second suffix.
        columns = 5 if name.lower().endswith(".pcd.bin") else 4
        if len(data) % (4 * columns):
            raise ValueError(f"{len(data):,} bytes are no points of {columns} float32 each")
        return as_points(np.frombuffer(data, "<f4").reshape(-1, columns))
    if data.startswith(NPY):
        return as_points(read_npy(data))
    if re.match(rb"\s*(#|VERSION)", data):
        return as_points(_read_pcd(data))
    raise ValueError("neither PCD, nor NPY, nor BIN")


def as_points(raw: np.ndarray) -> np.ndarray:
    """float64 [n, 3 + features] of numbers of that shape; what float32 cannot hold is infinite.

    Raises:
      ValueError: if it is something else, or there are no points.
    """
    values = np.asarray(raw)
    if values.dtype.kind not in "fiu" or values.ndim != 2 or not 3 <= values.shape[1] <= MOST_COLUMNS:
        raise ValueError(f"points are numbers [n, 3 + features], not {values.dtype} {list(values.shape)}")
    if not len(values):
        raise ValueError("there are no points")
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def _read_pcd(data: bytes) -> np.ndarray:
    """Columns of a PCD file of version 0.7: x, y, z, then the others in their order; a packed colour is three."""
    header, start = _header(data)
    fields = header["FIELDS"]
    try:
        sizes = [int(size) for size in header["SIZE"]]
        counts = [int(count) for count in header.get("COUNT", ["1"] * len(fields))]
        width, height = int(header["WIDTH"][0]), int(header["HEIGHT"][0])
        points = int(header.get("POINTS", [str(width * height)])[0])
    except (ValueError, IndexError):
        raise ValueError("the header of the PCD file has words where numbers should be") from None
    types = header["TYPE"]
    if not len(fields) == len(sizes) == len(types) == len(counts):
        raise ValueError("FIELDS, SIZE, TYPE and COUNT of the PCD file differ in length")
    if min(counts) < 1 or sum(counts) > MOST_COLUMNS or points < 0 or points != width * height:
        raise ValueError(f"the header of the PCD file promises {points} points of {sum(counts)} numbers")
    for place in _PLACE:
        if fields.count(place) != 1 or counts[fields.index(place)] != 1:
            raise ValueError(f"the PCD file has not one field {place!r} of one number")
    formats = []
    for size, kind in zip(sizes, types, strict=True):
        if size not in _TYPES.get(kind, {}):
            raise ValueError(f"the PCD file has numbers of type {kind} and {size} bytes")
        formats.append(_TYPES[kind][size])
    parts = _ascii if header["DATA"] == ["ascii"] else _binary
    columns = parts(data[start:], points, formats, counts)
    order = [fields.index(place) for place in _PLACE]
    # A field "_" only fills a gap.
    order += [number for number, field in enumerate(fields) if field not in (*_PLACE, "_")]
    return np.concatenate(
        [_unpacked(columns[number]) if fields[number] in _COLOURS else columns[number] for number in order], axis=1
    )


def _header(data: bytes) -> tuple[dict[str, list[str]], int]:
    """({keyword: its words}, where the points begin)."""
    header: dict[str, list[str]] = {}
    for match in re.finditer(rb"([^\n]*)\n", data):
        words = match[1].decode("ascii", "replace").split()
        if not words or words[0].startswith("#"):
            continue
        header[words[0]] = words[1:]
        if words[0] == "DATA":
            missing = [name for name in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT") if not header.get(name)]
            if missing:
                raise ValueError(f"the header of the PCD file has no {missing[0]}")
            if header["DATA"] not in (["ascii"], ["binary"]):
                raise ValueError(f"DATA {' '.join(header['DATA'])} is not read; save the PCD file as ascii or binary")
            return header, match.end()
    raise ValueError("the header of the PCD file has no end")


def _binary(data: bytes, points: int, formats: list[str], counts: list[int]) -> list[np.ndarray]:
    dtype = np.dtype([(str(number), each, (counts[number],)) for number, each in enumerate(formats)])
    promised = points * dtype.itemsize
    if len(data) < promised:
        raise ValueError(f"cut short: {len(data):,} of {promised:,} bytes")
    values = np.frombuffer(data, dtype, points)
    return [values[str(number)] for number in range(len(formats))]


def _ascii(data: bytes, points: int, formats: list[str], counts: list[int]) -> list[np.ndarray]:
    words = data.split()
    if len(words) != points * sum(counts):
        raise ValueError(f"{len(words):,} numbers, where there should be {points:,} x {sum(counts)}")
    try:
        values = np.array(words, np.float64).reshape(points, sum(counts))
    except ValueError:
        raise ValueError("words where numbers should be") from None
    parts = np.split(values, np.cumsum(counts)[:-1], axis=1)
    # A colour's bits are those of its own type; nothing else is so large that a type could not hold it.
    with np.errstate(invalid="ignore", over="ignore"):
        return [
            part.astype(each) if each in ("<f4", "<u4", "<i4") else part
            for part, each in zip(parts, formats, strict=True)
        ]


def _unpacked(colours: np.ndarray) -> np.ndarray:
    """[n, 3], red, green and blue of 0 to 255, of 32 bits in which they lie behind one another."""
    if colours.dtype.itemsize != 4 or colours.shape[1] != 1:
        raise ValueError("the colour in the PCD file is not packed into 32 bits")
    bits = np.ascontiguousarray(colours).view(np.uint32)
    return np.concatenate([bits >> shift & 255 for shift in (16, 8, 0)], axis=1)

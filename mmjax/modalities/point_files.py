"""Point cloud files: PCD (ASCII and binary), KITTI and nuScenes BIN, and NPY."""

from __future__ import annotations

import pathlib
import re

import numpy as np

from mmjax.modalities.raw_files import NPY, check_size, read_npy, to_float64

MAX_COLUMNS = 256
"""Maximum number of columns; an array with more is not a list of points."""

MAX_POINTS = 2**22
"""Maximum number of points of a cloud."""

# Maximum size of a PCD header in bytes.
_MAX_HEADER = 2**16
SUFFIXES = (".pcd", ".bin", ".npy")
_XYZ = ("x", "y", "z")
_COLOURS = ("rgb", "rgba")
_TYPES = {"F": {4: "<f4", 8: "<f8"}, "I": {n: f"<i{n}" for n in (1, 2, 4, 8)}, "U": {n: f"<u{n}" for n in (1, 2, 4, 8)}}


def read_points(data: bytes, name: str) -> np.ndarray:
    """Parses a point cloud file to float64 [n, 3 + features]: x, y, z, then the other columns of the file.

    Args:
      data: contents of the file.
      name: file name. Its suffix identifies BIN files (float32 x, y, z and intensity), which have no magic bytes.

    Raises:
      ValueError: if the format is unsupported, or the file is damaged, truncated or empty.
    """
    # Check BIN first: its data may start with any bytes.
    if pathlib.PurePath(name.lower()).suffix == ".bin":
        # nuScenes files end in .pcd.bin and add a fifth column, the ring index.
        columns = 5 if name.lower().endswith(".pcd.bin") else 4
        if len(data) % (4 * columns):
            raise ValueError(f"{len(data):,} bytes are not a multiple of {columns} float32 values per point")
        return as_points(np.frombuffer(data, "<f4").reshape(-1, columns))
    if data.startswith(NPY):
        return as_points(read_npy(data))
    if re.match(rb"\s*(#|VERSION)", data):
        return as_points(_read_pcd(data))
    raise ValueError("not a PCD, NPY or BIN file")


def as_points(raw: np.ndarray) -> np.ndarray:
    """Converts float or int [n, 3 + features] to float64. Values outside the float32 range become infinite.

    Raises:
      ValueError: if the dtype or shape differs, or the cloud is empty.
    """
    values = np.asarray(raw)
    if values.dtype.kind not in "fiu" or values.ndim != 2 or not 3 <= values.shape[1] <= MAX_COLUMNS:
        raise ValueError(f"points must be numeric [n, 3 + features], not {values.dtype} {list(values.shape)}")
    if not len(values):
        raise ValueError("the point cloud is empty")
    if len(values) > MAX_POINTS:
        raise ValueError(f"{len(values):,} points are more than {MAX_POINTS:,}; subsample the cloud")
    check_size(values)
    return to_float64(values)


def _read_pcd(data: bytes) -> np.ndarray:
    """Parses PCD 0.7: x, y, z, then the other fields in file order; a packed colour becomes three columns."""
    header, start = _parse_header(data)
    fields = header["FIELDS"]
    try:
        sizes = [int(size) for size in header["SIZE"]]
        counts = [int(count) for count in header.get("COUNT", ["1"] * len(fields))]
        width, height = int(header["WIDTH"][0]), int(header["HEIGHT"][0])
        points = int(header.get("POINTS", [str(width * height)])[0])
    except (ValueError, IndexError):
        raise ValueError("the PCD header has text instead of numbers") from None
    types = header["TYPE"]
    if not len(fields) == len(sizes) == len(types) == len(counts):
        raise ValueError("FIELDS, SIZE, TYPE and COUNT of the PCD header differ in length")
    if min(counts) < 1 or sum(counts) > MAX_COLUMNS or points < 0 or points != width * height:
        raise ValueError(f"the PCD header declares an invalid size: {points} points of {sum(counts)} numbers")
    for axis in _XYZ:
        if fields.count(axis) != 1 or counts[fields.index(axis)] != 1:
            raise ValueError(f"the PCD file must have exactly one field {axis!r} with COUNT 1")
    formats = []
    for size, kind in zip(sizes, types, strict=True):
        if size not in _TYPES.get(kind, {}):
            raise ValueError(f"the PCD file has the unsupported TYPE {kind} with SIZE {size}")
        formats.append(_TYPES[kind][size])
    parse = _parse_ascii if header["DATA"] == ["ascii"] else _parse_binary
    packed = [field in _COLOURS for field in fields]
    columns = parse(data[start:], points, formats, counts, packed)
    order = [fields.index(axis) for axis in _XYZ]
    # Fields named "_" are padding.
    order += [index for index, field in enumerate(fields) if field not in (*_XYZ, "_")]
    return np.concatenate(
        [_unpack_rgb(columns[index]) if fields[index] in _COLOURS else columns[index] for index in order], axis=1
    )


def _parse_header(data: bytes) -> tuple[dict[str, list[str]], int]:
    """Returns ({keyword: values}, byte offset of the point data)."""
    header: dict[str, list[str]] = {}
    for match in re.finditer(rb"([^\n]*)\n", data[:_MAX_HEADER]):
        tokens = match[1].decode("ascii", "replace").split()
        if not tokens or tokens[0].startswith("#"):
            continue
        header[tokens[0]] = tokens[1:]
        if tokens[0] == "DATA":
            missing = [name for name in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT") if not header.get(name)]
            if missing:
                raise ValueError(f"the PCD header has no {missing[0]}")
            if header["DATA"] not in (["ascii"], ["binary"]):
                raise ValueError(f"unsupported DATA {' '.join(header['DATA'])}; save the PCD file as ascii or binary")
            return header, match.end()
    raise ValueError("the PCD header has no DATA line")


def _parse_binary(
    data: bytes, points: int, formats: list[str], counts: list[int], packed: list[bool]
) -> list[np.ndarray]:
    dtype = np.dtype([(str(index), kind, (counts[index],)) for index, kind in enumerate(formats)])
    expected = points * dtype.itemsize
    if len(data) < expected:
        raise ValueError(f"truncated: {len(data):,} of {expected:,} bytes")
    values = np.frombuffer(data, dtype, points)
    return [values[str(index)] for index in range(len(formats))]


def _parse_ascii(
    data: bytes, points: int, formats: list[str], counts: list[int], packed: list[bool]
) -> list[np.ndarray]:
    tokens = data.split(maxsplit=min(points, MAX_POINTS) * sum(counts))
    if len(tokens) != points * sum(counts):
        raise ValueError(f"the PCD file has {len(tokens):,} numbers instead of {points:,} x {sum(counts)}")
    try:
        values = np.array(tokens, np.float64).reshape(points, sum(counts))
    except ValueError:
        raise ValueError("the PCD data has text instead of numbers") from None
    columns = np.split(values, np.cumsum(counts)[:-1], axis=1)
    # Cast packed colours to their 32-bit type, whose bits encode the channels. All other columns stay float64.
    with np.errstate(invalid="ignore", over="ignore"):
        return [
            column.astype(kind) if colour and kind in ("<f4", "<u4", "<i4") else column
            for column, kind, colour in zip(columns, formats, packed, strict=True)
        ]


def _unpack_rgb(colours: np.ndarray) -> np.ndarray:
    """Unpacks 32-bit colours [n, 1] to red, green and blue in 0 to 255, [n, 3]."""
    if colours.dtype.itemsize != 4 or colours.shape[1] != 1:
        raise ValueError("the colour of the PCD file is not one 32-bit value")
    bits = np.ascontiguousarray(colours).view(np.uint32)
    return np.concatenate([bits >> shift & 255 for shift in (16, 8, 0)], axis=1)

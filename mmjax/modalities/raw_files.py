"""Readers of raw files: bytes for the command line, and NPY arrays without unpickling."""

from __future__ import annotations

import io
import math

import numpy as np

from mmjax.errors import UserError
from mmjax.files import open_regular, read_bounded, user_path

NPY = b"\x93NUMPY"
"""Magic bytes of the NPY format."""

MAX_VALUES = 2**25
"""Maximum number of values of a series or of a point cloud, which are held as float64."""


def to_float64(values: np.ndarray) -> np.ndarray:
    """Converts numbers to float64; values outside the float32 range become infinite.

    Standardised values are float32, but raw ones must not be: float32 has a resolution of 0.5 m in UTM coordinates and
    of 128 s in Unix time. The range is that of float32, so that squares and sums stay finite.
    """
    values = values.astype(np.float64)
    limit = np.finfo(np.float32).max
    values[values > limit] = np.inf
    values[values < -limit] = -np.inf
    return values


def check_size(values: np.ndarray) -> None:
    """Raises ValueError if an array has more than `MAX_VALUES` values."""
    if values.size > MAX_VALUES:
        raise ValueError(f"{values.size:,} values are more than {MAX_VALUES:,}; cut the data into parts")


def fits_float32(values: np.ndarray) -> bool:
    """Returns True if float32 holds all values exactly, NaN included."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float32).astype(np.float64), values, equal_nan=True))


def read_bytes(argument: str, where: str, remedy: str) -> bytes:
    """Reads the file at the path `argument`.

    Raises:
      UserError: if it cannot be read; `where` and `remedy` are parts of the message.
    """
    try:
        with open_regular(user_path(argument)) as file:
            return read_bounded(file)
    except UserError as error:
        raise UserError(where, f"{argument!r} {error.problem}", remedy) from None
    except FileNotFoundError:
        raise UserError(where, f"file {argument!r} does not exist", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError(
            where, f"{argument!r} cannot be read: {getattr(error, 'strerror', '') or error}", remedy
        ) from None


def read_npy(data: bytes) -> np.ndarray:
    """Parses an NPY file. The returned array is a read-only view of `data`.

    Raises:
      ValueError: if `data` is not an NPY file, is truncated, or has a dtype other than integer, floating point or
        boolean. Object arrays, which would need unpickling, are rejected.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    # NumPy's parser raises many exception types on a damaged header, including SyntaxError and struct.error.
    except Exception as error:
        raise ValueError(f"not a valid NPY file: {error}") from None
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ValueError(f"the NPY file has dtype {dtype}, not integer, float or boolean")
    # NumPy's header parser accepts True and False as sizes; other NumPy functions do not.
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"the NPY file has an invalid shape {shape}")
    # Compare the declared size with the file before allocating, as a header may declare more than fits into memory.
    count = math.prod(shape)
    expected, available = count * dtype.itemsize, len(data) - file.tell()
    if available < expected:
        raise ValueError(f"truncated: {available:,} of {expected:,} bytes")
    values = np.frombuffer(data, dtype, count, file.tell())
    try:
        return values.reshape(shape, order="F" if fortran else "C")
    # Raised for too many axes, or for a size that exceeds 64 bits in a shape that also contains 0.
    except (ValueError, OverflowError) as error:
        raise ValueError(f"the NPY file has an invalid shape {shape}: {error}") from None

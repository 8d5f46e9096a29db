"""Reading raw files: bytes for the command line, and NPY arrays without unpickling."""

from __future__ import annotations

import io
import math

import numpy as np

from mmjax.errors import UserError
from mmjax.files import user_path

NPY = b"\x93NUMPY"
"""Magic bytes of the NPY format."""


def read_bytes(argument: str, where: str, remedy: str) -> bytes:
    """Reads the file at the path `argument`.

    Raises:
      UserError: if it cannot be read; `where` and `remedy` are parts of the message.
    """
    try:
        return user_path(argument).read_bytes()
    except FileNotFoundError:
        raise UserError(where, f"file {argument!r} does not exist", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError(where, f"{argument!r} cannot be read: {error}", remedy) from None


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
    # NumPy's parser raises many exception types on a damaged header, SyntaxError and struct.error included.
    except Exception as error:
        raise ValueError(f"not a valid NPY file: {error}") from None
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ValueError(f"the NPY file has dtype {dtype}, not integer, float or boolean")
    if any(size < 0 for size in shape):
        raise ValueError(f"the NPY file has an invalid shape {shape}")
    # Compare the header's size with the file before allocating: it may exceed the memory.
    count = math.prod(shape)
    expected, available = count * dtype.itemsize, len(data) - file.tell()
    if available < expected:
        raise ValueError(f"truncated: {available:,} of {expected:,} bytes")
    values = np.frombuffer(data, dtype, count, file.tell())
    return values.reshape(shape, order="F" if fortran else "C")

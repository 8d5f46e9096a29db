"""Files of raw data: their bytes for the command line, and arrays in NumPy's format; nothing is ever unpickled."""

from __future__ import annotations

import io
import math
import pathlib

import numpy as np

from mmjax.errors import UserError

NPY = b"\x93NUMPY"
"""The first bytes of NumPy's format."""


def read_bytes(argument: str, where: str, remedy: str) -> bytes:
    """The bytes of the file at the path `argument`. Raises UserError where there are none to read."""
    try:
        return pathlib.Path(argument).read_bytes()
    except FileNotFoundError:
        raise UserError(where, f"there is no file {argument!r}", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError(where, f"{argument!r} cannot be read: {error}", remedy) from None


def read_npy(data: bytes) -> np.ndarray:
    """The numbers that a file in NumPy's format holds; read only.

    Raises:
      ValueError: if it is no such file, is cut short, or holds anything but integers, floating-point numbers or
        booleans. Objects, which only unpickling could make, are among that.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    # A damaged header raises whatever NumPy's parser trips over, SyntaxError and struct.error included.
    except Exception as error:
        raise ValueError(f"no array in NumPy's format: {error}") from None
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ValueError(f"an array of {dtype}, and not of numbers")
    if any(size < 0 for size in shape):
        raise ValueError(f"an array of the shape {shape}")
    # A header may promise what no memory holds: it is compared with the file before anything is made.
    count = math.prod(shape)
    promised, there = count * dtype.itemsize, len(data) - file.tell()
    if there < promised:
        raise ValueError(f"cut short: {there:,} of {promised:,} bytes")
    values = np.frombuffer(data, dtype, count, file.tell())
    return values.reshape(shape, order="F" if fortran else "C")

"""Small raw files for avmnist: images in MNIST's format and recordings of four speakers."""

from __future__ import annotations

import gzip
import itertools
import pathlib
import struct

import numpy as np
import scipy.io.wavfile


def write_idx(path: pathlib.Path, values: np.ndarray) -> None:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_images(folder: pathlib.Path, count: int, prefix: str = "train", ending: str = "", seed: int = 0) -> None:
    """Writes `count` different images of each digit, sorted by label; the first pixel encodes the digit."""
    labels = np.repeat(np.arange(10), count).astype(np.uint8)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 6, 5)).astype(np.uint8)
    images[:, 0, 0] = labels
    write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", labels)


def write_recordings(folder: pathlib.Path, speakers: list[str], count: int = 2, rate: int = 8000) -> None:
    """Writes recordings whose first sample encodes digit, speaker and index."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit, (number, speaker), index in itertools.product(range(10), enumerate(speakers), range(count)):
        samples = np.full(100 + digit, 1000 * digit + 100 * number + index + 1, np.int16)
        scipy.io.wavfile.write(folder / f"{digit}_{speaker}_{index}.wav", rate, samples)

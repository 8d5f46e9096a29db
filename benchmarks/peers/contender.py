"""Shared code of the contenders of `benchmarks/clip.py`: model sizes, batch and timing. Needs only NumPy.

A contender is a program that takes `Settings` as JSON and prints one JSON object as its last line. It runs in its own
process, possibly with another Python, so that its peak memory is measured separately.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a CLIP model with two Transformers, whose hidden width is 4 x width."""

    pixels: int = 224
    patch: int = 32
    image_width: int = 768
    image_depth: int = 12
    image_heads: int = 12
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    length: int = 77
    vocabulary: int = 49_408
    width: int = 512


SIZES = {
    "b32": Size(),
    # For tests.
    "tiny": Size(16, 8, 16, 1, 2, 16, 1, 2, 8, 512, 8),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one measurement.

    Attributes:
      precision: dtype of matmuls, "float32" or "bfloat16"; parameters are float32.
      mode: variant of the contender, such as "compiled".
      path: folder of the contender's source, if needed.
      count: whether to count FLOPs as well.
    """

    size: str = "b32"
    batch_size: int = 32
    precision: str = "float32"
    cores: int = 1
    warmup: int = 1
    steps: int = 3
    mode: str = ""
    path: str = ""
    count: bool = True

    @property
    def shape(self) -> Size:
        return SIZES[self.size]


# AdamW as in the recipe; the learning rate is that of the first warmup steps.
OPTIMIZER = {"b1": 0.9, "b2": 0.98, "eps": 1e-6}
WEIGHT_DECAY, LEARNING_RATE, CLIP = 0.2, 5e-7, 1.0


class Missing(Exception):
    """Raised if a library is not installed, with a one-line installation command."""


def random_batch(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [B, pixels, pixels, 3] float32 and token ids [B, length] int32 without padding, equal for all."""
    size, rng = settings.shape, np.random.default_rng(0)
    images = rng.standard_normal((settings.batch_size, size.pixels, size.pixels, 3), np.float32)
    text = rng.integers(0, size.vocabulary - 2, (settings.batch_size, size.length), np.int32)
    # The end-of-text token has the largest id and comes last.
    text[:, -1] = size.vocabulary - 1
    return images, text


def time_steps(step: Callable[[], float], settings: Settings) -> dict[str, Any]:
    """Times calls of `step`, which runs a complete training step and returns the loss.

    Returns:
      {"wall": seconds of each timed step, "cpu": CPU seconds over all threads, "losses": loss of each timed step}.
    """
    found: dict[str, list[float]] = {"wall": [], "cpu": [], "losses": []}
    for number in range(settings.warmup + settings.steps):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        if number >= settings.warmup:
            found["wall"].append(time.perf_counter() - wall)
            found["cpu"].append(time.process_time() - cpu)
            found["losses"].append(loss)
    return found


def run(contender: Callable[[Settings], dict[str, Any]]) -> None:
    """Reads the settings from the command line, runs the contender and prints its results as JSON.

    `contender` returns the results of `time_steps`, "parameters", "versions" and, if `settings.count`, "flops".
    """
    settings = Settings(**json.loads(sys.argv[1]))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.cores])
    try:
        found = contender(settings)
    except Missing as missing:
        found = {"missing": str(missing)}
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps(found))

"""What the contenders of `benchmarks/clip.py` have in common: sizes, the batch, the clock. Needs NumPy alone.

A contender is a program that takes `Settings` as JSON and prints one JSON object as its last line. It runs in a process
of its own, maybe under another Python, so that its peak memory is its own.
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
    """A CLIP: two Transformers whose hidden layers have four times their width."""

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
    # To see that everything works.
    "tiny": Size(16, 8, 16, 1, 2, 16, 1, 2, 8, 512, 8),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One measurement.

    Attributes:
      precision: "float32", or "bfloat16" for the products, with float32 parameters.
      mode: of a peer that can run in several ways.
      path: where a peer's source lies.
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


# Of AdamW, as in the recipe; the learning rate of its first steps is small enough for any.
OPTIMIZER = {"b1": 0.9, "b2": 0.98, "eps": 1e-6}
WEIGHT_DECAY, LEARNING_RATE, CLIP = 0.2, 5e-7, 1.0


class Missing(Exception):
    """A peer is not installed; the message is one line that says how to install it."""


def random_batch(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [B, pixels, pixels, 3] float32 and sentences [B, length] int32 without padding, the same for all."""
    size, draws = settings.shape, np.random.default_rng(0)
    images = draws.standard_normal((settings.batch_size, size.pixels, size.pixels, 3), np.float32)
    text = draws.integers(0, size.vocabulary - 2, (settings.batch_size, size.length), np.int32)
    # The end of a sentence has the last number, and stands last.
    text[:, -1] = size.vocabulary - 1
    return images, text


def time_steps(step: Callable[[], float], settings: Settings) -> dict[str, Any]:
    """Calls `step`, which makes a whole step and returns the loss when it is done.

    Returns:
      "wall" and "cpu", seconds of each timed step, the latter those of all threads together; and "losses".
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
    """Reads the settings from the command line, measures, and prints what was found.

    `contender` returns what `time_steps` does, "parameters", "versions" and, if asked to count, "flops" of a step.
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

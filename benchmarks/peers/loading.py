"""Shared code of the contenders of `benchmarks/input.py`: loading an example, and timing.

Needs only NumPy, Pillow and SciPy. A contender is a program that takes `Settings` as JSON and prints one JSON object as
its last line. It runs in its own process, possibly with another Python, so that its peak memory is measured separately.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SIDE, RATE, SECONDS, LENGTH = 224, 16_000, 2.0, 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one measurement.

    Attributes:
      data: folder with `data.csv`, its files, and the data prepared from them.
      prepared: name of the subfolder with the prepared data, for mmjax.
      workers: number of worker processes.
      batches: number of timed batches, after `warmup` untimed ones.
    """

    data: str
    prepared: str = "prepared"
    batch_size: int = 64
    workers: int = 1
    warmup: int = 4
    batches: int = 16


def settings() -> Settings:
    return Settings(**json.loads(sys.argv[1]))


def rows(settings: Settings) -> list[dict[str, str]]:
    with open(pathlib.Path(settings.data) / "data.csv", newline="") as file:
        return list(csv.DictReader(file))


def example(folder: str, row: dict[str, str]) -> dict[str, np.ndarray]:
    """Loads an example: an image of 224 x 224, two seconds of audio at 16 kHz, 64 bytes of text, and a label."""
    import PIL.Image
    import scipy.io.wavfile
    import scipy.signal

    with PIL.Image.open(os.path.join(folder, row["picture"])) as opened:
        picture = opened.convert("RGB").resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    image = (np.asarray(picture, np.float32) / 255 - 0.5) / 0.5
    rate, samples = scipy.io.wavfile.read(os.path.join(folder, row["sound"]))
    audio = scipy.signal.resample_poly(samples.astype(np.float32) / 32768, RATE // 100, rate // 100)
    audio = audio.astype(np.float32)[: int(SECONDS * RATE)]
    audio = np.pad(audio, (0, int(SECONDS * RATE) - len(audio)))
    text = np.zeros(LENGTH, np.int32)
    tokens = list(row["caption"].encode())[:LENGTH]
    text[: len(tokens)] = tokens
    return {"image": image, "audio": audio, "text": text, "label": np.int32(row["label"])}


def time_batches(batches: Iterator[Any], settings: Settings, read: Callable[[Any], Any]) -> None:
    """Prints wall seconds, CPU seconds, and the peak memory of this process and of its largest child.

    `read` returns the images of a batch as an array.
    """
    total = 0.0
    for _ in range(settings.warmup):
        total += float(read(next(batches)).mean())
    before, start = _processor_seconds(), time.perf_counter()
    for _ in range(settings.batches):
        total += float(read(next(batches)).mean())
    wall, processor = time.perf_counter() - start, _processor_seconds() - before
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    count = settings.batches * settings.batch_size
    found = {"examples": count, "wall": wall, "processor": processor, "peak": own * 1024, "mean": total}
    print(json.dumps({**found, "child_peak": child * 1024}), flush=True)


def _processor_seconds() -> float:
    """Returns the CPU seconds of this process and all its descendants, including running ones."""
    tick = os.sysconf("SC_CLK_TCK")
    parents, seconds = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
            seconds[int(entry)] = sum(map(int, fields[11:15])) / tick
    wanted = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return sum(seconds[process] for process in wanted)

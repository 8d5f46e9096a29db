"""Compares the share of tokens in a batch that are not padding: packed, padded to the longest, and in length buckets.

    python benchmarks/packing.py

Uses sizes only, from realistic distributions: photographs in eight aspect ratios of cameras and screens, with a
log-normal long side (median 320 pixels); captions with log-normal lengths (median 60 bytes); recordings with log-normal
lengths (median 5 seconds). Prints the share of a batch's tokens that are not padding, and the seconds to plan a million
examples.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
from absl import app, flags

from mmjax.data.packing import Packing, PackingConfig
from mmjax.data.samplers import MixtureSampler
from mmjax.modalities import Audio, Image, Text

EXAMPLES = flags.DEFINE_integer("examples", 1_000_000, "examples to plan", lower_bound=1)
SLOTS = flags.DEFINE_integer("slots", 24, "maximum number of examples per row", lower_bound=2)
WINDOW = flags.DEFINE_integer("window", 1024, "examples per packing window", lower_bound=1)
PATCHES = flags.DEFINE_integer("patches", 2048, "row budget in patches of 16 x 16 pixels", lower_bound=576)
TOKENS = flags.DEFINE_integer("tokens", 576, "row budget in caption tokens", lower_bound=128)
CHUNKS = flags.DEFINE_integer("chunks", 1250, "row budget in audio chunks of 40 ms", lower_bound=500)
BUCKETS = flags.DEFINE_integer("buckets", 8, "number of length buckets, each padded to its longest", lower_bound=1)

RATIOS = {4 / 3: 0.3, 3 / 2: 0.25, 16 / 9: 0.1, 1.0: 0.1, 3 / 4: 0.1, 2 / 3: 0.1, 9 / 16: 0.03, 2.5: 0.02}
"""{aspect ratio, width / height: share of the images}."""


class Sizes:
    """Dataset index without records."""

    inputs: ClassVar = {"picture": "image", "caption": "text", "recording": "audio"}

    def __init__(self, examples: int):
        rng = np.random.default_rng(0)
        ratio = rng.choice(list(RATIOS), examples, p=list(RATIOS.values()))
        side = np.clip(np.rint(np.exp(rng.normal(np.log(320), 0.5, examples))), 64, 4096)
        self._columns = {
            "picture/height": np.where(ratio < 1, side, np.rint(side / ratio)),
            "picture/width": np.where(ratio < 1, np.rint(side * ratio), side),
            "caption/bytes": np.clip(np.rint(np.exp(rng.normal(np.log(60), 0.5, examples))), 1, 1000),
            "recording/seconds": np.exp(rng.normal(np.log(5), 0.5, examples)),
        }

    def columns(self, split: str) -> dict[str, np.ndarray]:
        return self._columns


def bucketed(lengths: np.ndarray, by: np.ndarray, buckets: int) -> float:
    """Returns the share without padding in buckets of equal size, sorted by `by`, each padded to its longest."""
    parts = np.array_split(lengths[np.argsort(by, kind="stable")], buckets)
    return lengths.sum() / sum(part.max() * len(part) for part in parts)


def main(_) -> None:
    # An image has at most the patches of 384 x 384 pixels, and keeps its aspect ratio.
    modalities = {
        "picture": Image(Image.Config(patch=16, patches=576)),
        "caption": Text(Text.Config(length=128)),
        "recording": Audio(Audio.Config(seconds=20.0, chunk=640)),
    }
    budgets = {"picture": PATCHES.value, "caption": TOKENS.value, "recording": CHUNKS.value}
    stream = MixtureSampler({"": np.arange(EXAMPLES.value)}, {"": [(0, 1.0)]}, WINDOW.value, seed=0)
    for names in (["picture"], ["picture", "caption"], ["recording"], ["recording", "caption"]):
        config = PackingConfig(slots=SLOTS.value, budgets={n: budgets[n] for n in names}, window=WINDOW.value)
        packing = Packing(config, {name: modalities[name] for name in names})
        start = time.perf_counter()
        planned_lengths = packing.planned_lengths(Sizes(EXAMPLES.value), "train", EXAMPLES.value)  # type: ignore[arg-type]
        order = packing.sampler(
            stream, planned_lengths, 16 * SLOTS.value, seed=0, windows=EXAMPLES.value // WINDOW.value
        )
        steps = order.steps
        seconds = time.perf_counter() - start
        # Use the first tenth of the epoch.
        seen = np.concatenate([order(step, np.arange(16))[0] for step in range(max(1, steps // 10))])
        seen = seen[seen >= 0]
        rows = 16 * max(1, steps // 10)
        print("useful tokens".ljust(28), *(f"{name:>10}" for name in names))
        shares = [planned_lengths[name][seen].sum() / (rows * budgets[name]) for name in names]
        print("packed".ljust(28), *(f"{share:10.1%}" for share in shares))
        shares = [bucketed(planned_lengths[name], planned_lengths[names[0]], BUCKETS.value) for name in names]
        print(f"{BUCKETS.value} buckets by {names[0]}s".ljust(28), *(f"{share:10.1%}" for share in shares))
        print(
            "padded to the largest".ljust(28),
            *(f"{planned_lengths[name].mean() / planned_lengths[name].max():10.1%}" for name in names),
        )
        print(f"  {len(seen) / rows:.1f} examples per row; plan of {EXAMPLES.value:,} examples in {seconds:.1f} s\n")
    start = time.perf_counter()
    for step in range(EXAMPLES.value // WINDOW.value // 10):
        stream(step, np.arange(WINDOW.value))
    print(f"drawing the order takes {10 * (time.perf_counter() - start):.1f} s of this, with or without packing")


if __name__ == "__main__":
    app.run(main)

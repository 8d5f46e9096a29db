"""How much of a batch is padding: packed, each example padded to the largest, or put into buckets of like lengths.

    python benchmarks/packing.py

Works on sizes alone, drawn as collections have them: photographs in eight aspect ratios of cameras and screens, the
long side log-normal around 320 pixels; captions log-normal around 60 bytes; recordings log-normal around 5 seconds.
Prints the share of a batch's tokens that are of an example, and the seconds that the plan of a million examples takes.
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
SLOTS = flags.DEFINE_integer("slots", 24, "examples that share a row at most", lower_bound=2)
WINDOW = flags.DEFINE_integer("window", 1024, "examples that are packed together", lower_bound=1)
PATCHES = flags.DEFINE_integer("patches", 2048, "budget of a row in patches of 16 x 16 pixels", lower_bound=576)
TOKENS = flags.DEFINE_integer("tokens", 576, "budget of a row in tokens of captions", lower_bound=128)
CHUNKS = flags.DEFINE_integer("chunks", 1250, "budget of a row in chunks of recordings, 40 ms each", lower_bound=500)
BUCKETS = flags.DEFINE_integer("buckets", 8, "of like numbers of elements, each padded to its largest", lower_bound=1)

RATIOS = {4 / 3: 0.3, 3 / 2: 0.25, 16 / 9: 0.1, 1.0: 0.1, 3 / 4: 0.1, 2 / 3: 0.1, 9 / 16: 0.03, 2.5: 0.02}
"""{width to height: share of the pictures}."""


class Sizes:
    """An index without the records."""

    inputs: ClassVar = {"picture": "image", "caption": "text", "recording": "audio"}

    def __init__(self, examples: int):
        draws = np.random.default_rng(0)
        ratio = draws.choice(list(RATIOS), examples, p=list(RATIOS.values()))
        side = np.clip(np.rint(np.exp(draws.normal(np.log(320), 0.5, examples))), 64, 4096)
        self._columns = {
            "picture/height": np.where(ratio < 1, side, np.rint(side / ratio)),
            "picture/width": np.where(ratio < 1, np.rint(side * ratio), side),
            "caption/bytes": np.clip(np.rint(np.exp(draws.normal(np.log(60), 0.5, examples))), 1, 1000),
            "recording/seconds": np.exp(draws.normal(np.log(5), 0.5, examples)),
        }

    def columns(self, split: str) -> dict[str, np.ndarray]:
        return self._columns


def bucketed(lengths: np.ndarray, by: np.ndarray, buckets: int) -> float:
    """The useful share where examples are sorted by `by` into buckets of equal size, each padded to its largest."""
    parts = np.array_split(lengths[np.argsort(by, kind="stable")], buckets)
    return lengths.sum() / sum(part.max() * len(part) for part in parts)


def main(_) -> None:
    # A picture has the patches of 384 x 384 pixels at most, and keeps its aspect ratio.
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
        # Of a tenth of the epoch, whole steps.
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
        print(f"  {len(seen) / rows:.1f} examples in a row, plan of {EXAMPLES.value:,} examples in {seconds:.1f} s\n")
    start = time.perf_counter()
    for step in range(EXAMPLES.value // WINDOW.value // 10):
        stream(step, np.arange(WINDOW.value))
    print(f"of this {10 * (time.perf_counter() - start):.1f} s to draw the order, which is the same without packing")


if __name__ == "__main__":
    app.run(main)

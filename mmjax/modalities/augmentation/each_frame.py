"""Image augmentation of clips, with the same random parameters for every frame."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmjax.modalities.clips import Clip, LazyFrames, as_clip


class EachFrame:
    """Applies an image augmentation to the frames of a clip, lazily. Base of the classes that `each_frame` makes."""

    augmentation: ClassVar[type]

    def __init__(self, config: Any):
        self._inner = self.augmentation(config)

    def __call__(self, raw: Clip, rng: np.random.Generator) -> Clip:
        """Transforms a clip, keeping its length and rate."""
        frames, rate = as_clip(raw)
        seed = int(rng.integers(0, 2**63))

        def transform(index: int) -> np.ndarray:
            # Reseed for each frame, so that all frames get the same transformation.
            return self._inner(frames[index], np.random.Generator(np.random.Philox(seed)))

        return Clip(LazyFrames(len(frames), transform), rate)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes cannot unpickle instances of a dynamically created class.
        return _rebuild, (self.augmentation, self._inner.config)


def each_frame(augmentation: type) -> type:
    """Makes a clip augmentation class from an image augmentation class, with the same `Config`."""
    members = {"augmentation": augmentation, "Config": augmentation.Config, "__doc__": augmentation.__doc__}  # type: ignore[attr-defined]
    return type(augmentation.__name__, (EachFrame,), members)


def _rebuild(augmentation: type, config: Any) -> EachFrame:
    return each_frame(augmentation)(config)

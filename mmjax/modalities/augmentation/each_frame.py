"""What changes pictures, for clips: every frame changes as the first one does."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmjax.modalities.clips import Clip, Frames, as_clip


class EachFrame:
    """Changes the frames of a clip, one like the other, when they are asked for. `each_frame` makes classes of it."""

    augmentation: ClassVar[type]

    def __init__(self, config: Any):
        self._inner = self.augmentation(config)

    def __call__(self, raw: Clip, draws: np.random.Generator) -> Clip:
        """A clip of the same length and rate."""
        frames, rate = as_clip(raw)
        seed = int(draws.integers(0, 2**63))

        def changed(number: int) -> np.ndarray:
            # The same numbers for each frame, so that nothing jumps from one to the next.
            return self._inner(frames[number], np.random.Generator(np.random.Philox(seed)))

        return Clip(Frames(len(frames), changed), rate)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes find no class that was made while the program ran.
        return _again, (self.augmentation, self._inner.config)


def each_frame(augmentation: type) -> type:
    """An augmentation of clips, with the options of one of pictures."""
    members = {"augmentation": augmentation, "Config": augmentation.Config, "__doc__": augmentation.__doc__}  # type: ignore[attr-defined]
    return type(augmentation.__name__, (EachFrame,), members)


def _again(augmentation: type, config: Any) -> EachFrame:
    return each_frame(augmentation)(config)

"""Words that go or change places (Wei and Zou, EDA: Easy Data Augmentation Techniques for Text, 2019)."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.config import Rate


class EditWords:
    """Deletes words and swaps neighbours, each with its own probability. A sentence keeps at least one word."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How often.

        Attributes:
          delete: the probability of each word.
          swap: of each pair of neighbours.
        """

        delete: Rate = 0.1
        swap: Rate = 0.1

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, raw: str, draws: np.random.Generator) -> str:
        """A sentence with single spaces between its words."""
        words = raw.split()
        if len(words) < 2:
            return raw
        chances = draws.uniform(0.0, 1.0, (2, len(words)))
        kept = [word for word, chance in zip(words, chances[0], strict=True) if chance >= self.config.delete]
        kept = kept or [words[int(chances[0].argmax())]]
        place = 0
        while place + 1 < len(kept):
            if chances[1][place] < self.config.swap:
                kept[place], kept[place + 1] = kept[place + 1], kept[place]
                # Or a word could wander through the whole sentence.
                place += 1
            place += 1
        return " ".join(kept)

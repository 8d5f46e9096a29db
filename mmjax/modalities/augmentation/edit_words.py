"""Random word deletion and swapping (Wei and Zou, EDA: Easy Data Augmentation Techniques for Text, 2019)."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.config import Rate
from mmjax.modalities.augmentation.base import Augmentation


class EditWords(Augmentation):
    """Randomly deletes words and swaps adjacent words. At least one word remains."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `EditWords`.

        Attributes:
          delete: probability of deleting each word.
          swap: probability of swapping each pair of adjacent words.
        """

        delete: Rate = 0.1
        swap: Rate = 0.1

    def __call__(self, raw: str, rng: np.random.Generator) -> str:
        """Returns the edited text, with single spaces between words."""
        words = raw.split()
        if len(words) < 2:
            return raw
        chances = rng.uniform(0.0, 1.0, (2, len(words)))
        kept = [word for word, chance in zip(words, chances[0], strict=True) if chance >= self.config.delete]
        kept = kept or [words[int(chances[0].argmax())]]
        index = 0
        while index + 1 < len(kept):
            if chances[1][index] < self.config.swap:
                kept[index], kept[index + 1] = kept[index + 1], kept[index]
                # Skip the swapped word, which could otherwise move through the whole text.
                index += 1
            index += 1
        return " ".join(kept)

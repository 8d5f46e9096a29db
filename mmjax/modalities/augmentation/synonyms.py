"""Words replaced by others of the same meaning (Zhang et al., Character-level Convolutional Networks, 2015)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
import re

import numpy as np

from mmjax.config import Rate
from mmjax.errors import UserError


class Synonyms:
    """Replaces words by synonyms from WordNet, or from a dictionary of the user's."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Which words and how often.

        Attributes:
          path: the folder of WordNet's database, with files like `data.noun`, or a JSON file {word: [synonyms]}.
          rate: the probability of each word that has synonyms.
        """

        path: str
        rate: Rate = 0.1

    def __init__(self, config: Config):
        self.config = config
        self._synonyms: dict[str, tuple[str, ...]] | None = None

    def open(self) -> None:
        """Reads the dictionary, before training. Raises UserError; who only evaluates does without the file."""
        self._synonyms = read_synonyms(self.config.path)

    def __call__(self, raw: str, draws: np.random.Generator) -> str:
        """The sentence with some of its words replaced; a capital at the beginning of a word stays."""
        if self._synonyms is None:
            self.open()
        synonyms = self._synonyms or {}

        def replaced(match: re.Match[str]) -> str:
            chance, choice = draws.uniform(0.0, 1.0, 2)
            known = synonyms.get(match[0].lower(), ())
            if not known or chance >= self.config.rate:
                return match[0]
            word = known[int(choice * len(known))]
            return word.capitalize() if match[0][0].isupper() else word

        return re.sub(r"[^\W\d_]+(?:'[^\W\d_]+)?", replaced, raw)


@functools.lru_cache(maxsize=4)
def read_synonyms(place: str) -> dict[str, tuple[str, ...]]:
    """{word: its synonyms}, of WordNet's database files or of a JSON file.

    Raises:
      UserError: if there are none.
    """
    path, remedy = pathlib.Path(place).expanduser(), "give the folder of WordNet's data.* files, or {word: [synonyms]}"
    files = sorted(path.glob("data.*")) if path.is_dir() else []
    try:
        if files:
            return _wordnet(files)
        found = json.loads(path.read_text())
        if not all(isinstance(others, list) for others in found.values()):
            raise TypeError("synonyms are lists")
        return {str(word).lower(): tuple(map(str, others)) for word, others in found.items()}
    except (OSError, ValueError, AttributeError, IndexError, TypeError) as error:
        problem = f"{place!r} holds no synonyms ({type(error).__name__}: {error})"
        raise UserError("data.augment, the path of synonyms", problem, remedy) from None


def _wordnet(files: list[pathlib.Path]) -> dict[str, tuple[str, ...]]:
    """From lines "offset file type count word id word id … | gloss", whose count is hexadecimal (wndb(5WN))."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            parts = line.split(" ")
            # An adjective may say where it stands: "galore(ip)".
            words = [re.sub(r"\(\w+\)$", "", parts[4 + 2 * number]) for number in range(int(parts[3], 16))]
            words = [word.replace("_", " ").lower() for word in words]
            for word in words:
                found[word].update(other for other in words if other != word)
    return {word: tuple(sorted(others)) for word, others in found.items() if others}

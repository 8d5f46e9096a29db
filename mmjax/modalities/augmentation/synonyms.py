"""Synonym replacement (Zhang et al., Character-level Convolutional Networks, 2015)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
import re
from typing import Annotated

import numpy as np

from mmjax.config import FilePath, Rate
from mmjax.errors import UserError
from mmjax.files import user_path


class Synonyms:
    """Replaces words with synonyms from WordNet or a user-defined dictionary."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Synonyms`.

        Attributes:
          path: folder of the WordNet database, with files like `data.noun`, or a JSON file {word: [synonyms]}.
          rate: probability of replacing each word that has synonyms.
        """

        path: Annotated[str, FilePath()]
        rate: Rate = 0.1

    def __init__(self, config: Config):
        self.config = config
        self._synonyms: dict[str, tuple[str, ...]] | None = None

    def open(self) -> None:
        """Reads the dictionary. Called before training only; evaluation does not need the file.

        Raises:
          UserError: if the file has no synonyms.
        """
        self._synonyms = read_synonyms(self.config.path)

    def __call__(self, raw: str, rng: np.random.Generator) -> str:
        """Returns the text with random words replaced, keeping initial capitals."""
        if self._synonyms is None:
            self.open()
        synonyms = self._synonyms or {}

        def replace(match: re.Match[str]) -> str:
            chance, choice = rng.uniform(0.0, 1.0, 2)
            candidates = synonyms.get(match[0].lower(), ())
            if not candidates or chance >= self.config.rate:
                return match[0]
            word = candidates[int(choice * len(candidates))]
            return word.capitalize() if match[0][0].isupper() else word

        return re.sub(r"[^\W\d_]+(?:'[^\W\d_]+)?", replace, raw)


@functools.lru_cache(maxsize=4)
def read_synonyms(uri: str) -> dict[str, tuple[str, ...]]:
    """Reads {word: synonyms} from a folder of WordNet database files or a JSON file.

    Raises:
      UserError: if the files are missing or invalid.
    """
    path = user_path(uri)
    files = sorted(path.glob("data.*")) if path.is_dir() else []
    try:
        if files:
            return _read_wordnet(files)
        synonyms = json.loads(path.read_text())
        if not all(isinstance(others, list) for others in synonyms.values()):
            raise TypeError("synonyms must be lists")
        return {str(word).lower(): tuple(map(str, others)) for word, others in synonyms.items()}
    except (OSError, ValueError, AttributeError, IndexError, TypeError) as error:
        problem = f"{uri!r} has no synonyms ({type(error).__name__}: {error})"
        remedy = "give the folder of WordNet's data.* files, or a JSON file {word: [synonyms]}"
        raise UserError("data.augment, the path of synonyms", problem, remedy) from None


def _read_wordnet(files: list[pathlib.Path]) -> dict[str, tuple[str, ...]]:
    """Parses lines "offset file type count word id word id … | gloss", with a hexadecimal count (wndb(5WN))."""
    synonyms: dict[str, set[str]] = collections.defaultdict(set)
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # licence text
                continue
            fields = line.split(" ")
            # Adjectives may have a syntactic marker: "galore(ip)".
            words = [re.sub(r"\(\w+\)$", "", fields[4 + 2 * index]) for index in range(int(fields[3], 16))]
            words = [word.replace("_", " ").lower() for word in words]
            for word in words:
                synonyms[word].update(other for other in words if other != word)
    return {word: tuple(sorted(others)) for word, others in synonyms.items() if others}

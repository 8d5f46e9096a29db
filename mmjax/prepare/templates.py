"""Sentences that share a template: "the patient in bed 3 has a fever" and "the patient in bed 7 has a cough".

They share most of their words, but the words in which they differ are their content. Copies differ in words that say
nothing about the other texts: a correction, or a synonym here and there.
"""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Iterable

Substitution = tuple[tuple[str, str], str, str]
"""((word before, word after), words of the first text, words of the second)."""

# A place filled in at least this many ways is part of a template; so are words exchanged in this many places.
_MIN_FILLERS = 3
_MIN_EXCHANGES = 2
# In a longer text, a few other words are a small difference.
_MAX_WORDS = 200


class Templates:
    """Templates of a column of texts, learned from pairs of similar texts.

    Args:
      pairs: pairs of normalized texts, words separated by single spaces.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self._fillers: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        self._exchanges: dict[frozenset[str], set[tuple[str, str]]] = collections.defaultdict(set)
        for first, second in pairs:
            for place, one, other in substitutions(first, second):
                self._fillers[place].update((one, other))
                self._exchanges[frozenset((one, other))].add(place)

    def are_copies(self, first: str, second: str) -> bool:
        """Returns False if two similar texts are fillings of one template, or differ in a number."""
        return not any(
            _numbers(one) != _numbers(other)
            or len(self._fillers.get(place, ())) >= _MIN_FILLERS
            or len(self._exchanges.get(frozenset((one, other)), ())) >= _MIN_EXCHANGES
            for place, one, other in substitutions(first, second)
        )


def substitutions(first: str, second: str) -> list[Substitution]:
    """Lists the words of one text in the place of other words of the other, and added words with a digit."""
    one, other = first.split(), second.split()
    if max(len(one), len(other)) > _MAX_WORDS:
        return []
    found: list[Substitution] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        words = " ".join(one[i:j]), " ".join(other[k:m])
        if kind == "replace" or kind != "equal" and any(map(_numbers, words)):
            found.append(((one[i - 1] if i else "", one[j] if j < len(one) else ""), *words))
    return found


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)

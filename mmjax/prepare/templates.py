"""Detection of texts from one template: "the patient in bed 3 has a fever", "the patient in bed 7 has a cough".

Such texts share most of their words, but their content is in the words that differ. Copies differ in words that do not
recur in other pairs, such as a correction or a synonym.
"""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Iterable

Substitution = tuple[tuple[str, str], str, str]
"""((word before, word after), words of the first text, words of the second)."""

# A substitution belongs to a template if at least _MIN_FILLERS phrases occur in its place (the words around it), or if
# its two phrases replace each other in at least _MIN_EXCHANGES places.
_MIN_FILLERS = 3
_MIN_EXCHANGES = 2
# Maximum number of words in compared texts. In longer texts, a few substituted words do not matter.
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
        """Returns False if two similar texts fill the same template or differ in a number."""
        return not any(
            _numbers(one) != _numbers(other)
            or len(self._fillers.get(place, ())) >= _MIN_FILLERS
            or len(self._exchanges.get(frozenset((one, other)), ())) >= _MIN_EXCHANGES
            for place, one, other in substitutions(first, second)
        )


def substitutions(first: str, second: str) -> list[Substitution]:
    """Lists the substituted words between two texts, and inserted or deleted words that contain a digit."""
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

"""Errors that a user can act on: one line that says what, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The command line prints it as one line and exits with code 2.

    Args:
      where: what the user can edit, for example `train.batch_size` or `--image=x.png`.
      problem: what is wrong, with the bad value.
      remedy: what would be right.
    """

    def __init__(self, where: str, problem: str, remedy: str):
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(" ".join(f"{where}: {problem}; {remedy}".split()))


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns "did you mean X?" where a known word is close, else the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(map(repr, known))}" if known else "none is known here"

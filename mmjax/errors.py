"""Errors that the command line prints as one line: `UserError` (exit code 2) and `RunError` (exit code 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Invalid user input. The command line prints it as one line and exits with code 2.

    Args:
      where: the config key, flag or file to edit, for example `train.batch_size` or `--image=x.png`.
      problem: description of the error, with the bad value.
      remedy: a valid value, or an action that solves the problem.
    """

    def __init__(self, where: str, problem: str, remedy: str):
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(" ".join(f"{where}: {problem}; {remedy}".split()))

    def __reduce__(self):
        # Worker processes raise it too; by default, unpickling calls the class with the message alone.
        return type(self), (self.where, self.problem, self.remedy)


class RunError(Exception):
    """A failure of a run that needs no traceback. The command line prints it as one line and exits with code 1."""


class MissingData(UserError):
    """Raw or prepared data, which mmjax does not provide, is not on this machine."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean X?" if a known name is similar to `name`, else the list of known names as choices."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(map(repr, known))}" if known else "no valid name exists"

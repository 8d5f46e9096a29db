"""Exit codes of the command line, and the errors that it prints as one line."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """Exit codes of `mmjax`, also for launchers: start the same command again after `RESTART` only.

    Attributes:
      DONE: success.
      FAILED: the run failed, and would fail again.
      INVALID_INPUT: the user's input is invalid; one line names it.
      RESTART: the run stalled, lost a process or was preempted; the same command resumes it.
      INTERRUPTED: Ctrl-C.
    """

    DONE = 0
    FAILED = 1
    INVALID_INPUT = 2
    RESTART = 3
    INTERRUPTED = 130


class UserError(Exception):
    """Invalid user input. The command line prints it as one line and exits with code 2.

    Args:
      where: the config key, flag or file to edit, for example `train.batch_size` or `--image=x.png`.
      problem: description of the error, with the bad value.
      remedy: a valid value, or an action that solves the problem.
    """

    exit_code = ExitCode.INVALID_INPUT

    def __init__(self, where: str, problem: str, remedy: str):
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(" ".join(f"{where}: {problem}; {remedy}".split()))

    def __reduce__(self):
        # Worker processes raise it too. The default passes the joined message as the only argument.
        return type(self), (self.where, self.problem, self.remedy)


class RunError(Exception):
    """A failure of a run that needs no traceback. The command line prints it as one line and exits with code 1."""

    exit_code = ExitCode.FAILED


class Restart(RunError):
    """The run stopped, and the same command resumes it: it stalled, lost a process or was preempted. Exit code 3."""

    exit_code = ExitCode.RESTART


class Preempted(Restart):
    """A signal stopped the run after it saved a checkpoint."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped the run after it saved a checkpoint. Exit code 130."""

    exit_code = ExitCode.INTERRUPTED


class MissingData(UserError):
    """Raw or prepared data, which mmjax does not provide, is not on this machine."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean X?" if a known name is similar to `name`, else the list of known names as choices."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(map(repr, known))}" if known else "no valid name exists"

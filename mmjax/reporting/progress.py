"""Progress bar of a loop, on terminals only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(console: Console, title: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Shows a bar with elapsed and remaining time, which disappears at the end. Prints nothing without a terminal.

    Args:
      console: console of the bar.
      title: text before the bar.
      total: number of steps, or None if unknown.

    Yields:
      function to call after each step.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(title, total=total)
        yield lambda: bars.advance(bar)

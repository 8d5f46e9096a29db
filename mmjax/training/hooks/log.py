"""The console and the log: a progress bar with rate, loss and ETA, and a row of metrics every so many steps."""

from __future__ import annotations

import dataclasses
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmjax.config import Count
from mmjax.tasks.metrics import finalise
from mmjax.training.loop import Hook, Loop
from mmjax.training.metrics_log import MetricsLog
from mmjax.training.optim.schedules import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """The section `log`.

    Attributes:
      every: data steps from one row of metrics to the next; each row is the mean since the last.
    """

    every: Count = 50


class LogHook(Hook):
    """Writes the training metrics and shows progress; without a terminal, a line every tenth of the run."""

    def __init__(
        self, config: LogConfig, log: MetricsLog | None, console: Console, schedule: Schedule, examples: float
    ):
        self.config, self.log, self.console = config, log, console
        self.schedule, self.examples = schedule, examples
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def start(self, loop: Loop) -> None:
        self.bar = self.progress.add_task("training", total=loop.steps, completed=loop.step, shown="compiling …")
        self.progress.start()
        self.since, self.at = time.perf_counter(), loop.step

    def after_step(self, loop: Loop) -> None:
        self.progress.update(self.bar, completed=loop.step)
        if loop.step % self.config.every and not loop.done:
            return
        row = finalise(jax.device_get(loop.state.window))
        row["optimizer/learning_rate"] = float(self.schedule(int(loop.state.step) - 1))
        seconds = (time.perf_counter() - self.since) / (loop.step - self.at)
        self.since, self.at = time.perf_counter(), loop.step
        row["perf/step_seconds"], row["perf/examples_per_second"] = seconds, self.examples / seconds
        loop.latest["train"] = row
        if self.log:
            self.log.write(loop.step, "train", row)
        shown = f"loss {row.get('loss', float('nan')):.4f}  {row['perf/examples_per_second']:,.0f} examples/s"
        self.progress.update(self.bar, shown=shown)
        tenth = loop.steps / 10
        if not self.console.is_terminal and loop.step // tenth > (loop.step - self.config.every) // tenth:
            left = seconds * (loop.steps - loop.step)
            self.console.print(f"step {loop.step}/{loop.steps}  {shown}  ETA {left:.0f} s")

    def finish(self, loop: Loop) -> None:
        self.progress.stop()

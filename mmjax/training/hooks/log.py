"""Logging: progress bar with loss, throughput and ETA, and periodic rows of training metrics."""

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
    """The config section `log`.

    Attributes:
      every: logging interval in data steps; each row averages the metrics since the previous one.
    """

    every: Count = 50


class LogHook(Hook):
    """Writes the training metrics and shows a progress bar; without a terminal, prints a line every 10 % of the run.

    Args:
      config: options.
      log: metrics log, or None in processes that do not write.
      console: console of the progress bar.
      schedule: learning-rate schedule.
      batch_size: mean number of examples per step.
    """

    def __init__(
        self, config: LogConfig, log: MetricsLog | None, console: Console, schedule: Schedule, batch_size: float
    ):
        self.config, self.log, self.console = config, log, console
        self.schedule, self.batch_size = schedule, batch_size
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def start(self, loop: Loop) -> None:
        self.bar = self.progress.add_task("training", total=loop.steps, completed=loop.step, status="compiling …")
        self.progress.start()
        self.last_time, self.last_step = time.perf_counter(), loop.step

    def after_step(self, loop: Loop) -> None:
        self.progress.update(self.bar, completed=loop.step)
        if loop.step % self.config.every and not loop.done:
            return
        row = finalise(jax.device_get(loop.state.window))
        row["optimizer/learning_rate"] = float(self.schedule(int(loop.state.step) - 1))
        seconds = (time.perf_counter() - self.last_time) / (loop.step - self.last_step)
        self.last_time, self.last_step = time.perf_counter(), loop.step
        row["perf/step_seconds"], row["perf/examples_per_second"] = seconds, self.batch_size / seconds
        loop.latest_metrics["train"] = row
        if self.log:
            self.log.write(loop.step, "train", row)
        status = f"loss {row.get('loss', float('nan')):.4f}  {row['perf/examples_per_second']:,.0f} examples/s"
        if skipped := row["optimizer/skipped"]:
            status += f"  {skipped:.0%} of the last steps skipped (gradient not finite)"
        self.progress.update(self.bar, status=status)
        tenth = loop.steps / 10
        if not self.console.is_terminal and loop.step // tenth > (loop.step - self.config.every) // tenth:
            eta = seconds * (loop.steps - loop.step)
            self.console.print(f"step {loop.step}/{loop.steps}  {status}  ETA {eta:.0f} s")

    def finish(self, loop: Loop) -> None:
        self.progress.stop()

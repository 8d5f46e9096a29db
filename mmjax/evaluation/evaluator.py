"""Evaluation of a split: jit once, add the metric states of all batches, compute the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
from jax.sharding import Mesh

from mmjax.config import Formerly, NonNegative, Within
from mmjax.errors import Preempted
from mmjax.sharding import replicated
from mmjax.tasks.metrics import States, finalise, merge
from mmjax.tokens import Batch
from mmjax.training.ledger import timed
from mmjax.training.loop import Hook, Loop
from mmjax.training.metrics_log import MetricsLog
from mmjax.training.objective import Objective, Parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The config section `evaluate`.

    Attributes:
      every: evaluation interval on "validation" in data steps; 0 evaluates only at the end.
      splits: splits to evaluate after the last step.
      subsets: evaluate `splits` with every subset of the inputs.
      checkpoint: state that `result.json`, `mmjax evaluate` and `mmjax predict` use: "latest" or "best".
      batch_size: examples per batch; defaults to the training batch size.
    """

    every: NonNegative = 0
    splits: tuple[str, ...] = ("test",)
    subsets: bool = True
    checkpoint: Annotated[Literal["latest", "best"], Formerly("use")] = "latest"
    batch_size: Annotated[int, Within(1, 2**24)] | None = None


class EvaluationStopped(Preempted):
    """Raised by `Evaluator.after_batch` to stop an evaluation, because a signal asks the run to stop."""


class Evaluator:
    """Evaluates parameters on a split, without dropout.

    "loss" is the sum over the tasks of weight x mean loss over the whole split, for any batch size. Metrics of coupled
    (contrastive) tasks are computed within each batch, so they depend on the batch size.

    Args:
      objective: objective of the run.
      mesh: device mesh.
      batches: function from split name to its batches on the mesh, the last one padded with absent examples.

    Attributes:
      after_batch: called after each batch; may raise `EvaluationStopped`.
    """

    def __init__(self, objective: Objective, mesh: Mesh, batches: Callable[[str], Iterable[Batch]]):
        def states(parameters: Parameters, batch: Batch) -> States:
            _, states = objective(parameters, batch, train=False)
            del states["loss"]  # mean of one batch; `run_each` computes the loss of the split
            return states

        self.objective = objective
        self.mesh, self.batches = mesh, batches
        self.after_batch: Callable[[], None] = lambda: None
        self.states = jax.jit(states, out_shardings=replicated(mesh))
        # Merge all metrics in one computation. With one computation per metric, CPU devices exceed XLA's limit of
        # computations in flight, and multi-process runs deadlock.
        self.merge = jax.jit(merge)

    def run(
        self,
        parameters: Parameters,
        split: str,
        without: Collection[str] = (),
        *,
        step: int = 0,
        advance: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Metrics of a split, `{name: value}`, with the inputs `without` set to absent; see `run_each`."""
        return self.run_each(parameters, split, [without], step=step, advance=advance)[0]

    @timed("evaluation")
    def run_each(
        self,
        parameters: Parameters,
        split: str,
        ablations: Sequence[Collection[str]],
        *,
        step: int = 0,
        advance: Callable[[], None] = lambda: None,
    ) -> list[dict[str, float]]:
        """Metrics of a split for several sets of absent inputs; each batch is loaded once.

        Args:
          parameters: parameters to evaluate.
          split: name of the split.
          ablations: sets of absent inputs.
          step: data step of the parameters, for the scheduled task weights in "loss".
          advance: called after each batch, for a progress bar.
        """
        totals: list[States | None] = [None] * len(ablations)
        with jax.set_mesh(self.mesh):
            for batch in self.batches(split):
                for index, without in enumerate(ablations):
                    states, total = self.states(parameters, batch.without(without)), totals[index]
                    totals[index] = states if total is None else self.merge(total, states)
                # Limit asynchronous dispatch: otherwise inputs of many batches fill the device memory, and on CPU more
                # interdependent computations are in flight than there are threads.
                jax.block_until_ready(totals)
                self.after_batch()
                advance()
        return [self._row(jax.device_get(total or {}), step) for total in totals]

    def _row(self, states: States, step: int) -> dict[str, float]:
        row = finalise(states)
        loss = self.objective.eval_loss(row, step)
        return row if loss is None else {**row, "loss": loss}


class EvaluationHook(Hook):
    """Evaluates periodically on the validation split and logs the metrics.

    If a signal stops an evaluation, the resumed run evaluates its restored state first.

    Args:
      evaluator: evaluator of the run.
      every: interval in data steps, in addition to the last step; 0 for never.
      log: metrics log, or None in processes that do not write.
      history: rows of `metrics.jsonl` that earlier processes of the run wrote.
      split: split to evaluate.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        every: int,
        log: MetricsLog | None,
        history: Sequence[Mapping[str, Any]] = (),
        split: str = "validation",
    ):
        self.evaluator, self.every, self.log, self.split = evaluator, every, log, split
        self.evaluated = {row["step"] for row in history if row["split"] == split}

    def start(self, loop: Loop) -> None:
        if loop.step and loop.step not in self.evaluated:
            self._evaluate_if_due(loop)

    def after_step(self, loop: Loop) -> None:
        # Keep metrics only for the step that was evaluated: they select the best checkpoint.
        loop.latest_metrics.pop(self.split, None)
        self._evaluate_if_due(loop)

    def _evaluate_if_due(self, loop: Loop) -> None:
        if not self.every or (loop.step % self.every and not loop.done):
            return
        jax.block_until_ready(loop.state)  # the wait for queued steps is not a part of the evaluation
        try:
            row = self.evaluator.run(loop.state.eval_parameters, self.split, step=loop.step)
        except EvaluationStopped:
            return
        loop.latest_metrics[self.split] = row
        if self.log:
            self.log.write(loop.step, self.split, row)

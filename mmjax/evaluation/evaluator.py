"""Metrics of a split: jit once, add the states of the batches, finalise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Literal

import jax
from jax.sharding import Mesh

from mmjax.config import NonNegative, Within
from mmjax.sharding import replicated
from mmjax.tasks.metrics import States, finalise, merge
from mmjax.tokens import Batch
from mmjax.training.loop import Hook, Loop
from mmjax.training.metrics_log import MetricsLog
from mmjax.training.objective import Objective, Parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The section `evaluate`.

    Attributes:
      every: data steps from one evaluation on "validation" to the next; 0 evaluates at the end only.
      splits: what is evaluated after the last step.
      subsets: whether each of them is evaluated with every subset of the inputs.
      use: which checkpoint `mmjax evaluate` and `mmjax predict` read, the newest or the best.
      batch_size: examples at once; the training batch by default.
    """

    every: NonNegative = 0
    splits: tuple[str, ...] = ("test",)
    subsets: bool = True
    use: Literal["latest", "best"] = "latest"
    batch_size: Annotated[int, Within(1, 2**24)] | None = None


class Evaluator:
    """Evaluates parameters on a split.

    Coupled tasks (contrastive ones) are measured within each batch, so their numbers depend on its size.

    Args:
      objective: whose tasks are measured, without dropout.
      mesh: where.
      batches: gives the batches of a split on the mesh, the last one padded with absent examples.
    """

    def __init__(self, objective: Objective, mesh: Mesh, batches: Callable[[str], Iterable[Batch]]):
        def measure(parameters: Parameters, batch: Batch) -> States:
            return objective(parameters, batch, train=False)[1]

        self.mesh, self.batches = mesh, batches
        self.measure = jax.jit(measure, out_shardings=replicated(mesh))
        # One computation for all metrics: with one for each number, the devices of a CPU have more in flight than XLA
        # allows, and several processes then wait for each other for ever.
        self.merge = jax.jit(merge)

    def run(self, parameters: Parameters, split: str, without: Collection[str] = ()) -> dict[str, float]:
        """The split's metrics by name, with the named inputs absent."""
        return self.run_each(parameters, split, [without])[0]

    def run_each(
        self, parameters: Parameters, split: str, absences: Sequence[Collection[str]]
    ) -> list[dict[str, float]]:
        """The same for several sets of absent inputs, with each batch loaded once."""
        totals: list[States | None] = [None] * len(absences)
        with jax.set_mesh(self.mesh):
            for batch in self.batches(split):
                for number, without in enumerate(absences):
                    states, total = self.measure(parameters, batch.without(without)), totals[number]
                    totals[number] = states if total is None else self.merge(total, states)
                # Without this all batches would be sent ahead: inputs fill the devices' memory, and on a CPU more
                # computations that wait for each other are in flight than there are threads.
                jax.block_until_ready(totals)
        return [finalise(jax.device_get(total or {})) for total in totals]


class EvaluationHook(Hook):
    """Evaluates on the validation split while training goes on."""

    def __init__(self, evaluator: Evaluator, every: int, log: MetricsLog | None, split: str = "validation"):
        self.evaluator, self.every, self.log, self.split = evaluator, every, log, split

    def after_step(self, loop: Loop) -> None:
        # What is there after a step was measured at this step: a checkpoint is judged by it.
        loop.latest.pop(self.split, None)
        if not self.every or (loop.step % self.every and not loop.done):
            return
        row = self.evaluator.run(loop.state.evaluated, self.split)
        loop.latest[self.split] = row
        if self.log:
            self.log.write(loop.step, self.split, row)

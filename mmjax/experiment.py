"""The one place that puts a config's data, model, step, hooks and evaluation together."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Generator, Iterable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.config import AtLeast, Count, Formerly, Rate, Within, build, choose, refusals
from mmjax.data.dataset import check_split
from mmjax.data.packing import Packing, PackingConfig
from mmjax.data.pipeline import Pipeline, prefetch_to_device
from mmjax.data.sampling import FilterConfig, SamplingConfig
from mmjax.data.workers import worker_count
from mmjax.datasets import Dataset, make_dataset
from mmjax.errors import UserError, nearest
from mmjax.evaluation import EvaluateConfig, Evaluator, subset_name, subsets
from mmjax.layers import Precision
from mmjax.modalities import MODALITIES
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.model import Model, ModelConfig
from mmjax.sharding import MeshConfig, batch_rows, batch_sharding, batch_shards, make_mesh, place_batch, replicated
from mmjax.tasks.metrics import finalise
from mmjax.tokens import Batch, abstract_batch
from mmjax.training import ESTIMATORS, HOOKS, LOSS_TRANSFORMS
from mmjax.training.checkpoint import CheckpointConfig
from mmjax.training.hooks.log import LogConfig
from mmjax.training.objective import Objective
from mmjax.training.optim.optimizer import make_optimizer
from mmjax.training.optim.schedules import make_schedule
from mmjax.training.state import TrainState
from mmjax.training.step import Trainer, compile_step, state_shardings

CHANGEABLE = ("mesh", "log", "checkpoint", "data.workers", "data.prefetch", "train.steps")
"""What may differ when a run is resumed: nothing that changes what is computed, but for its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The part of the section `data` that all datasets share; every other key is the dataset's own.

    Attributes:
      name: a name in `mmjax.datasets.DATASETS`.
      inputs: {name of an input: options of its modality}; inputs that no encoder reads need not be named.
      modality_dropout: {name of an input: the share of training examples that it is hidden from}.
      augment: {name of an input: what changes its raw training data, a list of {"kind": a name in `AUGMENTATIONS`, …}}.
      sampling: how large a part of each batch comes from which records; see `mmjax.data.sampling.SamplingConfig`. By
        default each epoch holds each record once.
      filter: {column: what it must say for a record to be trained on}; see `mmjax.data.sampling.FilterConfig`.
      packing: how several examples share each row of the inputs; see `mmjax.data.packing.PackingConfig`. By default
        each example has a row of its own.
      workers: processes that load data; 0 loads in a thread of the main process. -1 takes as many as the host's cores
        and half of its free memory allow, and none where the devices are a CPU.
      prefetch: batches that are loaded ahead.
    """

    name: str
    inputs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    modality_dropout: Annotated[dict[str, Rate], Formerly("absent")] = dataclasses.field(default_factory=dict)
    augment: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    sampling: SamplingConfig | None = None
    filter: dict[str, FilterConfig] = dataclasses.field(default_factory=dict)
    packing: PackingConfig = PackingConfig()
    workers: Annotated[int, AtLeast(-1)] = 0
    prefetch: Count = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The section `train`.

    Attributes:
      steps: data steps of the whole run.
      batch_size: examples of a step over all devices of all processes, at most where examples are packed.
      accumulate: microbatches of a step; more of them need less memory, and give the same result.
      ema: decay of a moving average of the parameters, which evaluation then uses; None for none.
      estimator: {"kind": a name in `ESTIMATORS`, …}; by default what `accumulate` asks for.
      loss_transforms: each {"kind": a name in `LOSS_TRANSFORMS`, …}, the innermost first.
      hooks: each {"kind": a name in `HOOKS`, …}.
    """

    steps: Count
    batch_size: Annotated[int, Within(1, 2**24)]
    accumulate: Count = 1
    ema: Annotated[Rate | None, Formerly("average")] = None
    estimator: Any = None
    loss_transforms: tuple[Any, ...] = ()
    hooks: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole recipe; `docs/config.md` explains it section by section."""

    data: Any
    model: ModelConfig
    tasks: dict[str, Any]
    optimizer: Any
    schedule: Any
    train: TrainConfig
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    mesh: MeshConfig = MeshConfig()
    precision: Precision = Precision()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()


class Experiment:
    """Everything that a config means, checked, before anything is computed or written.

    Args:
      raw: the recipe, a `ConfigDict` or a dict.
      devices: of the mesh; all by default.
      mesh: another section `mesh` than the recipe's, for reading a checkpoint elsewhere.

    Raises:
      UserError: wherever the recipe is wrong.
    """

    def __init__(self, raw: Any, devices: list[jax.Device] | None = None, mesh: MeshConfig | None = None):
        self.raw = plain(raw)
        self.config = config = build(ExperimentConfig, self.raw, "")
        self.data_config, self.dataset = make_dataset(config.data, DataConfig)
        self.modalities = _modalities(self.data_config, self.dataset, config.model)
        self.augmentations = _augmentations(self.data_config, self.dataset)
        packing = self.data_config.packing
        self.packing = Packing(packing, self.modalities) if packing.slots > 1 else None
        self.specs = self.packing.specs if self.packing else {n: m.spec for n, m in self.modalities.items()}
        self.targets = dict(self.dataset.targets)
        self.layout = mesh or config.mesh
        self.mesh = make_mesh(self.layout, devices)
        self.schedule = make_schedule(config.schedule, "schedule", config.train.steps)
        self.variables = nnx.state(nnx.eval_shape(functools.partial(self._model, 0)))
        self.graph = nnx.graphdef(nnx.eval_shape(functools.partial(self._model, 0)))
        self.objective = self._objective()
        self.trainer = self._trainer()
        self.shapes, self.shardings = self._shapes()
        self.hooks = [choose(HOOKS, hook, f"train.hooks[{number}]") for number, hook in enumerate(config.train.hooks)]
        self._check_evaluation()

    def _model(self, seed: int | jax.Array) -> Model:
        config = self.config
        rngs = nnx.Rngs(params=jax.random.key(seed))
        return Model(config.model, config.tasks, self.specs, self.targets, precision=config.precision, rngs=rngs)

    def _objective(self) -> Objective:
        model = nnx.merge(self.graph, self.variables)
        task_weights = {
            name: make_schedule(section.get("weight", 1.0), f"tasks.{name}.weight", self.config.train.steps)
            for name, section in self.config.tasks.items()
        }
        self.primary_metrics = [f"{name}/{task.primary_metric}" for name, task in model.tasks.items()]
        coupled = frozenset(name for name, task in model.tasks.items() if task.coupled)
        return Objective(self.graph, task_weights, self.config.seed, coupled, self.layout, self.specs)

    def _trainer(self) -> Trainer:
        train = self.config.train
        objective = self.objective
        for number, section in enumerate(train.loss_transforms):
            cls, options = choose(LOSS_TRANSFORMS, section, f"train.loss_transforms[{number}]")
            objective = cls(options)(objective)
        section = train.estimator
        if section is None:
            section = (
                {"kind": "accumulated", "microbatches": train.accumulate} if train.accumulate > 1 else {"kind": "plain"}
            )
        cls, options = choose(ESTIMATORS, section, "train.estimator")
        estimator = cls(options)
        parts, shards = getattr(estimator, "microbatches", 1), batch_shards(self.mesh)
        self._rows(train.batch_size)
        slots = self.data_config.packing.slots
        if train.batch_size % (parts * shards * slots):
            raise UserError(
                "train.accumulate",
                f"{parts} microbatches on {shards} parts of the mesh do not divide {train.batch_size} examples",
                f"make train.batch_size a multiple of {parts * shards * slots}",
            )
        optimizer = make_optimizer(self.config.optimizer, self.schedule)
        return Trainer(objective, estimator, optimizer, train.ema, self.config.log.every)

    def _shapes(self) -> tuple[TrainState, TrainState]:
        def init():
            return self.trainer.init(_zeros(nnx.to_pure_dict(self.variables)), _zeros(self.abstract_batch))

        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(init)
            try:
                jax.eval_shape(self.trainer.optimizer.update, shapes.parameters, shapes.optimizer, shapes.parameters)
            except (TypeError, ValueError) as error:
                # Optax looks at most of its arguments only now.
                problem = f"Optax refuses: {str(error).splitlines()[0]}"
                raise UserError("optimizer", problem, "see the arguments of this optimiser") from error
        return shapes, state_shardings(self.mesh, self.trainer, self.variables, shapes)

    def _check_evaluation(self) -> None:
        """Finds now what would end the run hours later: splits, metrics and batches that there are not."""
        evaluate, checkpoint = self.config.evaluate, self.config.checkpoint
        for number, split in enumerate(evaluate.splits):
            check_split(split, self.dataset.splits, f"evaluate.splits[{number}]")
            if not self.inputs_of(split):
                problem = f"examples of {split!r} have none of the inputs {', '.join(self.specs)}"
                raise UserError(f"evaluate.splits[{number}]", problem, "leave it out, or add an encoder")
        if evaluate.every:
            check_split("validation", self.dataset.splits, "evaluate.every")
        if evaluate.batch_size:
            self._rows(evaluate.batch_size, "evaluate.batch_size")
        watched = {"checkpoint.best": checkpoint.best} if checkpoint.best else {}
        for number, (_, options) in enumerate(self.hooks):
            if hasattr(options, "metric"):
                watched[f"train.hooks[{number}].metric"] = options.metric
        for where, metric in watched.items():
            if not evaluate.every:
                raise UserError(where, f"{metric!r} is never measured, as evaluate.every is 0", "set evaluate.every")
            if metric not in self.evaluated_metrics:
                raise UserError(where, f"no metric is named {metric!r}", nearest(metric, self.evaluated_metrics))
        if checkpoint.best and checkpoint.every % evaluate.every:
            problem = f"{checkpoint.every} is not a multiple of evaluate.every = {evaluate.every}"
            raise UserError("checkpoint.every", problem, "make it one: checkpoint.best compares all checkpoints")
        if evaluate.use == "best" and not checkpoint.best:
            raise UserError("evaluate.use", "'best' has no meaning without checkpoint.best", "set it to a metric")

    @functools.cached_property
    def evaluated_metrics(self) -> list[str]:
        """The names of the metrics of an evaluation in which everything occurs."""
        parameters = nnx.to_pure_dict(self.variables)
        with jax.set_mesh(self.mesh):
            measure = functools.partial(self.objective, train=False)
            _, states = jax.eval_shape(measure, parameters, self.abstract_batch)
        # Numbers that differ: of equal ones there would be no variance, and no metric of it.
        numbers = itertools.count(1)
        return sorted(finalise(jax.tree.map(lambda shape: np.full(shape.shape, next(numbers), shape.dtype), states)))

    # State.

    def init_state(self) -> TrainState:
        """The first state, made where it lives: no device ever holds all of it."""

        def init(seed):
            parameters = nnx.to_pure_dict(nnx.state(self._model(seed)))
            return self.trainer.init(parameters, _zeros(self.abstract_batch))

        with jax.set_mesh(self.mesh):
            return jax.jit(init, out_shardings=self.shardings)(self.config.seed)

    @property
    def abstract_batch(self) -> Batch:
        slots = self.data_config.packing.slots
        return abstract_batch(self.specs, self.targets, self.config.train.batch_size, slots)

    @property
    def abstract_state(self) -> TrainState:
        """Shapes with shardings, the target of a restore."""
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )

    def compile_step(self):
        return compile_step(self.trainer, self.mesh, self.shardings)

    def lower_step(self):
        """The step for shapes alone: its `compile()` makes the program that training runs, without any data."""
        return self.compile_step().lower(self.abstract_state, self.placed_batch)

    def trace_step(self):
        """The step as JAX traces it, for shapes alone."""
        with jax.set_mesh(self.mesh):
            return jax.make_jaxpr(self.trainer.step)(self.abstract_state, self.placed_batch)

    @property
    def placed_batch(self) -> Batch:
        """The shapes of a batch, with where their rows live."""
        whole, rows = replicated(self.mesh), batch_sharding(self.mesh)
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows if shape.shape else whole),
            self.abstract_batch,
        )

    # Data.

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        data = self.data_config
        return Pipeline(
            self.dataset,
            self.modalities,
            seed=self.config.seed,
            modality_dropout=data.modality_dropout,
            augment=self.augmentations,
            sampling=data.sampling,
            filters=data.filter,
            packing=self.packing,
            workers=self._workers,
            prefetch=data.prefetch,
        )

    @property
    def _workers(self) -> int:
        data = self.data_config
        if data.workers >= 0:
            return data.workers
        leaves = jax.tree.leaves(self.abstract_batch)
        batch_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // jax.process_count()
        return worker_count(batch_bytes, data.prefetch, self.mesh.devices.flat[0].platform)

    @functools.cached_property
    def examples_per_step(self) -> float:
        """On average where examples are packed, else the batch size."""
        return self.pipeline.examples_per_step("train", self.config.train.batch_size)

    @property
    def chances(self) -> dict[str, float | None]:
        """{task: the loss of a model that knows nothing but how often each answer comes}, None where nobody knows."""
        tasks = nnx.merge(self.graph, self.variables).tasks
        return {name: task.chance_loss(max(1, round(self.examples_per_step))) for name, task in tasks.items()}

    def _rows(self, batch_size: int, where: str = "train.batch_size") -> np.ndarray:
        """The rows of a batch of so many examples that this process loads."""
        if self.packing:
            return batch_rows(self.mesh, self.packing.rows(batch_size, where), where, self.packing.config.slots)
        return batch_rows(self.mesh, batch_size, where)

    def train_batches(self, start: int) -> Generator[Batch, None, None]:
        """The batches of the training split on the mesh, from data step `start` on, for ever."""
        size = self.config.train.batch_size
        batches = self.pipeline.train_batches("train", size, start_step=start, rows=self._rows(size))
        return prefetch_to_device(batches, lambda batch: place_batch(self.mesh, batch, size))

    def evaluation_batches(self, split: str) -> Iterable[Batch]:
        """The batches of a split on the mesh, once, in order, the last one padded with absent examples."""
        size = self.config.evaluate.batch_size or self.config.train.batch_size
        rows = self._rows(size, "evaluate.batch_size")
        for batch in self.pipeline.evaluation_batches(split, size, rows=rows):
            yield place_batch(self.mesh, batch, size)

    # Evaluation.

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.objective, self.mesh, self.evaluation_batches)

    def inputs_of(self, split: str) -> list[str]:
        """The inputs of the model that examples of a split can have: in a mixture some splits lack some."""
        there = getattr(self.dataset, "inputs_of", lambda split: self.dataset.inputs)(split)
        return [name for name in self.specs if name in there]

    def evaluate_subsets(self, parameters: Any, split: str) -> dict[str, dict[str, float]]:
        """{subset of the inputs that the split has, like "audio+image": metrics with only these present}."""
        present = subsets(self.inputs_of(split))
        absences = [[name for name in self.specs if name not in subset] for subset in present]
        rows = self.evaluator.run_each(parameters, split, absences)
        return {subset_name(subset): row for subset, row in zip(present, rows, strict=True)}

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """{"TASK/accuracy": {subset: the best accuracy that it allows}}, of those tasks where this is known."""
        known = self.dataset.ceilings(split)
        targets = {name: section.get("target") or name for name, section in self.config.tasks.items()}
        return {f"{name}/accuracy": known[target] for name, target in targets.items() if target in known}


def _zeros(shapes: Any) -> Any:
    """Arrays in the place of shapes. JAX then finds the step's trace again, which it does not with bare shapes."""
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def plain(raw: Any) -> dict[str, Any]:
    """A config as it stands in `config.json`: dicts, lists and plain values only."""
    try:
        raw = raw.to_dict() if hasattr(raw, "to_dict") else raw
        # Sorted, as config.json is and as a ConfigDict is: random draws and the fusion go by the order of the encoders.
        return json.loads(json.dumps(raw, sort_keys=True))
    except TypeError as error:
        raise UserError("config", str(error), "use numbers, strings, lists and dicts only") from error


def _modalities(config: DataConfig, dataset: Dataset, model: ModelConfig) -> dict[str, Any]:
    for where, names in (
        ("data.inputs", config.inputs),
        ("data.modality_dropout", config.modality_dropout),
        ("data.augment", config.augment),
        ("model.encoders", model.encoders),
    ):
        for name in names:
            if name not in dataset.inputs:
                raise UserError(f"{where}.{name}", f"the data has no input {name!r}", nearest(name, dataset.inputs))
    modalities = {}
    for name in model.encoders:
        facts = getattr(dataset, "dataset_options", {}).get(name, {})
        section = {"kind": dataset.inputs[name], **facts, **config.inputs.get(name, {})}
        cls, options = choose(MODALITIES, section, f"data.inputs.{name}")
        with refusals(f"data.inputs.{name}"):
            modalities[name] = cls(options)
    return modalities


def _augmentations(config: DataConfig, dataset: Dataset) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {}
    for name, sections in config.augment.items():
        table = AUGMENTATIONS.get(dataset.inputs[name], {})
        for number, section in enumerate(sections):
            cls, options = choose(table, section, f"data.augment.{name}[{number}]")
            made.setdefault(name, []).append(cls(options))
    return made

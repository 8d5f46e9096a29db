"""`Experiment`: builds data, model, train step, hooks and evaluation from one config."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Generator, Iterable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.config import AtLeast, Count, Formerly, Rate, Within, build, choose, convert_value_errors
from mmjax.data.dataset import check_split
from mmjax.data.packing import Packing, PackingConfig
from mmjax.data.pipeline import MAX_BROKEN, Pipeline, prefetch_to_device
from mmjax.data.sampling import FilterConfig, SamplingConfig
from mmjax.data.workers import worker_count
from mmjax.datasets import Dataset, make_dataset, shared_config
from mmjax.datasets.paths import LOCATION_KEYS, resolve_paths
from mmjax.errors import UserError, nearest
from mmjax.evaluation import EvaluateConfig, Evaluator, subset_name, subsets
from mmjax.layers import Precision
from mmjax.modalities import MODALITIES
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.model import Model, ModelConfig
from mmjax.processes.stall import StallConfig
from mmjax.sharding import MeshConfig, batch_rows, batch_sharding, batch_shards, make_mesh, place_batch, replicated
from mmjax.tasks.metrics import finalise
from mmjax.tokens import Batch, abstract_batch
from mmjax.training import ESTIMATORS, HOOKS, LOSS_TRANSFORMS
from mmjax.training.checkpoint import CheckpointConfig
from mmjax.training.hooks.log import LogConfig
from mmjax.training.objective import Objective
from mmjax.training.optim.optimizer import make_optimizer
from mmjax.training.optim.schedules import make_schedule, schedule_length
from mmjax.training.state import TrainState
from mmjax.training.step import Trainer, compile_step, state_shardings

CHANGEABLE_ON_RESUME = (
    "mesh",
    "log",
    "checkpoint",
    "watchdog",
    "data.workers",
    "data.prefetch",
    "data.max_broken",
    "train.steps",
    "train.max_skipped",
    "train.rollback",
    "schedule.steps",
    "tasks.*.weight.steps",
    *LOCATION_KEYS,
)
"""Config keys that may change on resume; `*` stands for one name. They affect only the last step, the ends of
schedules, and runs with many skipped steps, not the other computed values. The location of the data may change, because
the data itself is compared with the run's record of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Keys of the section `data` that all datasets share. The dataset's own `Config` reads all other keys.

    Attributes:
      name: a name in `mmjax.datasets.DATASETS`.
      inputs: {input: options of its modality}; inputs that no encoder reads may be omitted.
      modality_dropout: {input: fraction of training examples in which it is masked}.
      augment: {input: augmentations of its raw training data, a list of {"kind": a name in `AUGMENTATIONS`, …}}.
      sampling: mixture weights of record groups in each batch; see `mmjax.data.sampling.SamplingConfig`. By default
        each epoch contains each record once.
      filter: {column: condition on training records}; see `mmjax.data.sampling.FilterConfig`.
      packing: packing of several examples into one row; see `mmjax.data.packing.PackingConfig`. By default one example
        per row.
      workers: data loading processes; 0 loads in a thread of the main process. -1 takes as many as the host's cores
        and half of its free memory allow, and 0 if the devices are CPUs.
      prefetch: batches to load ahead.
      max_broken: fraction of a split's records that may be unreadable. They are masked and counted in `result.json`.
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
    max_broken: Annotated[float, Within(0.0, 1.0)] = MAX_BROKEN


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of the section `train`.

    Attributes:
      steps: data steps of the whole run.
      batch_size: global batch size, over all devices of all processes; with packing, the maximum number of examples.
      accumulate: microbatches per step (gradient accumulation); more need less memory, with the same result.
      max_skipped: the run fails after this many consecutive steps with non-finite gradients. Such steps are skipped:
        they change no parameter.
      rollback: instead of failing, restore the newest checkpoint before these steps, and continue with the batches
        after them.
      ema: decay of the exponential moving average (EMA) of the parameters, used in evaluation; None disables it.
      estimator: gradient estimator, {"kind": a name in `ESTIMATORS`, …}; by default `plain`, or `accumulated` if
        `accumulate` is above 1.
      loss_transforms: list of {"kind": a name in `LOSS_TRANSFORMS`, …}, innermost first.
      hooks: list of {"kind": a name in `HOOKS`, …}.
    """

    steps: Count
    batch_size: Annotated[int, Within(1, 2**24)]
    accumulate: Count = 1
    max_skipped: Count = 20
    rollback: bool = False
    ema: Annotated[Rate | None, Formerly("average")] = None
    estimator: Any = None
    loss_transforms: tuple[Any, ...] = ()
    hooks: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All sections of a recipe. See `docs/config.md`."""

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
    watchdog: StallConfig = StallConfig()


class Experiment:
    """Components of a run, built and checked from its config. Computes no parameters and writes no files.

    Args:
      raw: the recipe, a `ConfigDict` or a dict.
      devices: devices of the mesh; all by default.
      mesh: replaces the recipe's section `mesh`, for reading a checkpoint on other devices.
      dataset: replaces the dataset of the section `data`, for example by a run's record of it.

    Raises:
      UserError: if the recipe is invalid.
    """

    def __init__(
        self,
        raw: Any,
        devices: list[jax.Device] | None = None,
        mesh: MeshConfig | None = None,
        dataset: Dataset | None = None,
    ):
        self.raw = resolve_paths(plain(raw))
        self.config = config = build(ExperimentConfig, self.raw, "")
        if dataset is None:
            self.data_config, self.dataset = make_dataset(config.data, DataConfig)
        else:
            self.data_config, self.dataset = shared_config(config.data, DataConfig), dataset
        self.modalities = _modalities(self.data_config, self.dataset, config.model)
        self.augmentations = _augmentations(self.data_config, self.dataset)
        packing = self.data_config.packing
        self.packing = Packing(packing, self.modalities) if packing.slots > 1 else None
        self.specs = self.packing.specs if self.packing else {n: m.spec for n, m in self.modalities.items()}
        self.targets = dict(self.dataset.targets)
        self.mesh_config = mesh or config.mesh
        self.mesh = make_mesh(self.mesh_config, devices)
        self.schedule = make_schedule(config.schedule, "schedule", config.train.steps)
        self.graphdef, self.variables = nnx.split(nnx.eval_shape(functools.partial(self._model, 0)))
        self.objective = self._objective()
        self.trainer = self._trainer()
        self.shapes, self.shardings = self._shapes()
        self.hooks = [choose(HOOKS, hook, f"train.hooks[{index}]") for index, hook in enumerate(config.train.hooks)]
        self._check_evaluation()

    def _model(self, seed: int | jax.Array) -> Model:
        config = self.config
        rngs = nnx.Rngs(params=jax.random.key(seed))
        return Model(config.model, config.tasks, self.specs, self.targets, precision=config.precision, rngs=rngs)

    def _objective(self) -> Objective:
        model = nnx.merge(self.graphdef, self.variables)
        task_weights = {
            name: make_schedule(section.get("weight", 1.0), f"tasks.{name}.weight", self.config.train.steps)
            for name, section in self.config.tasks.items()
        }
        self.primary_metrics = [f"{name}/{task.primary_metric}" for name, task in model.tasks.items()]
        coupled = frozenset(name for name, task in model.tasks.items() if task.coupled)
        return Objective(self.graphdef, task_weights, self.config.seed, coupled, self.mesh_config, self.specs)

    def _trainer(self) -> Trainer:
        train = self.config.train
        objective = self.objective
        for index, section in enumerate(train.loss_transforms):
            cls, options = choose(LOSS_TRANSFORMS, section, f"train.loss_transforms[{index}]")
            objective = cls(options)(objective)
        section = train.estimator
        if section is None:
            section = (
                {"kind": "accumulated", "microbatches": train.accumulate} if train.accumulate > 1 else {"kind": "plain"}
            )
        cls, options = choose(ESTIMATORS, section, "train.estimator")
        estimator = cls(options)
        microbatches, shards = getattr(estimator, "microbatches", 1), batch_shards(self.mesh)
        self._rows(train.batch_size)
        divisor = microbatches * shards * self.data_config.packing.slots
        if train.batch_size % divisor:
            raise UserError(
                "train.accumulate",
                f"{microbatches} microbatches on {shards} batch shards do not divide {train.batch_size} examples",
                f"make train.batch_size a multiple of {divisor}",
            )
        optimizer = make_optimizer(self.config.optimizer, self.schedule)
        return Trainer(objective, estimator, optimizer, train.ema, self.config.log.every)

    def _shapes(self) -> tuple[TrainState, TrainState]:
        def init():
            return self.trainer.init(_zeros(nnx.to_pure_dict(self.variables)), _zeros(self.abstract_batch))

        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(init)
        return shapes, state_shardings(self.mesh, self.trainer, self.variables, shapes)

    def _check_evaluation(self) -> None:
        """Checks splits, metrics and batch sizes of evaluation, which would otherwise fail hours into the run."""
        evaluate, checkpoint = self.config.evaluate, self.config.checkpoint
        for index, split in enumerate(evaluate.splits):
            where = f"evaluate.splits[{index}]"
            check_split(split, self.dataset.splits, where)
            if not self.inputs_of(split):
                problem = f"examples of {split!r} have none of the inputs {', '.join(self.specs)}"
                raise UserError(where, problem, "remove the split, or add an encoder")
        if evaluate.every:
            check_split("validation", self.dataset.splits, "evaluate.every")
        if evaluate.batch_size:
            self._rows(evaluate.batch_size, "evaluate.batch_size")
        for where, metric in self._watched_metrics.items():
            if not evaluate.every:
                raise UserError(where, f"{metric!r} is never measured: evaluate.every is 0", "set evaluate.every")
            if metric not in self.evaluated_metrics:
                raise UserError(where, f"unknown metric {metric!r}", nearest(metric, self.evaluated_metrics))
        if checkpoint.best and checkpoint.every % evaluate.every:
            problem = f"{checkpoint.every} is not a multiple of evaluate.every = {evaluate.every}"
            raise UserError("checkpoint.every", f"{problem}, as checkpoint.best requires", "make it a multiple")
        if evaluate.checkpoint == "best" and not checkpoint.best:
            raise UserError("evaluate.checkpoint", "'best' requires checkpoint.best", "set checkpoint.best to a metric")

    @property
    def _watched_metrics(self) -> dict[str, str]:
        """Validation metrics that select checkpoints or stop the run, `{config key: metric}`."""
        watched = {"checkpoint.best": self.config.checkpoint.best} if self.config.checkpoint.best else {}
        for index, (_, options) in enumerate(self.hooks):
            if hasattr(options, "metric"):
                watched[f"train.hooks[{index}].metric"] = options.metric
        return watched

    def check_watched_targets(self) -> None:
        """Checks that the validation split has targets for the metrics that the run depends on. Reads records.

        Raises:
          UserError: if no record of the split has the target of a metric.
        """
        for where, metric in self._watched_metrics.items():
            section = self.config.tasks.get(metric.partition("/")[0], {})
            target = section.get("target") or metric.partition("/")[0]
            if target in self.targets and not self.pipeline.has_target("validation", target):
                problem = f"no example of 'validation' has the target {target!r}, so {metric!r} is never measured"
                raise UserError(where, problem, "remove the key, choose a metric of another task, or label the split")

    @functools.cached_property
    def evaluated_metrics(self) -> list[str]:
        """Metric names, `TASK/METRIC`, of an evaluation with all inputs and targets present."""
        parameters = nnx.to_pure_dict(self.variables)
        with jax.set_mesh(self.mesh):
            measure = functools.partial(self.objective, train=False)
            _, states = jax.eval_shape(measure, parameters, self.abstract_batch)
        # Distinct values, because metrics that divide by a variance are omitted when it is 0.
        values = itertools.count(1)
        return sorted(finalise(jax.tree.map(lambda shape: np.full(shape.shape, next(values), shape.dtype), states)))

    # State and train step.

    def init_state(self) -> TrainState:
        """Initialises the train state under jit with sharded outputs, so that no device holds all of it."""

        def init(seed):
            parameters = nnx.to_pure_dict(nnx.state(self._model(seed)))
            return self.trainer.init(parameters, _zeros(self.abstract_batch))

        with jax.set_mesh(self.mesh):
            return jax.jit(init, out_shardings=self.shardings)(np.uint32(self.config.seed))

    @property
    def abstract_batch(self) -> Batch:
        """Shapes and dtypes of a global training batch."""
        slots = self.data_config.packing.slots
        return abstract_batch(self.specs, self.targets, self.config.train.batch_size, slots)

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the train state, as the target of a checkpoint restore."""
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )

    def compile_step(self):
        """Returns the jitted train step, `step(state, batch) -> state`."""
        return compile_step(self.trainer, self.mesh, self.shardings)

    def lower_step(self):
        """Lowers the train step for abstract shapes. `.compile()` gives the program that training runs."""
        return self.compile_step().lower(self.abstract_state, self.sharded_abstract_batch)

    def trace_step(self):
        """Returns the jaxpr of the train step for abstract shapes."""
        with jax.set_mesh(self.mesh):
            return jax.make_jaxpr(self.trainer.step)(self.abstract_state, self.sharded_abstract_batch)

    @property
    def sharded_abstract_batch(self) -> Batch:
        """`abstract_batch` with shardings: scalars are replicated, arrays are sharded over their first axis."""
        scalar, array = replicated(self.mesh), batch_sharding(self.mesh)
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=array if shape.shape else scalar),
            self.abstract_batch,
        )

    # Data.

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """Input pipeline of all splits."""
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
            max_broken=data.max_broken,
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
        """Average number of examples per step: the batch size, or less with packing."""
        return self.pipeline.examples_per_step("train", self.config.train.batch_size)

    @property
    def chance_losses(self) -> dict[str, float | None]:
        """Chance-level losses, `{task: loss}`, of a model that predicts the marginal distribution; None if unknown."""
        tasks = nnx.merge(self.graphdef, self.variables).tasks
        return {name: task.chance_loss(max(1, round(self.examples_per_step))) for name, task in tasks.items()}

    def _rows(self, batch_size: int, where: str = "train.batch_size") -> np.ndarray:
        """Indices of the global batch's rows that this process loads, for a batch of `batch_size` examples."""
        if self.packing:
            return batch_rows(self.mesh, self.packing.rows(batch_size, where), where, self.packing.config.slots)
        return batch_rows(self.mesh, batch_size, where)

    def train_batches(self, start: int) -> Generator[Batch, None, None]:
        """Yields training batches on the mesh, endlessly, starting at data step `start`."""
        size = self.config.train.batch_size
        batches = self.pipeline.train_batches("train", size, start_step=start, rows=self._rows(size))
        return prefetch_to_device(batches, lambda batch: place_batch(self.mesh, batch, size))

    def evaluation_batches(self, split: str) -> Iterable[Batch]:
        """Yields the batches of a split on the mesh, once, in order. The last is padded with absent examples."""
        size = self.config.evaluate.batch_size or self.config.train.batch_size
        rows = self._rows(size, "evaluate.batch_size")
        for batch in self.pipeline.evaluation_batches(split, size, rows=rows):
            yield place_batch(self.mesh, batch, size)

    def num_evaluation_batches(self, split: str) -> int | None:
        """Returns the number of `evaluation_batches` of a split; None with packing, which plans it while reading."""
        size = self.config.evaluate.batch_size or self.config.train.batch_size
        return None if self.packing else -(-self.pipeline.size(split) // size)

    # Evaluation.

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Evaluator of all splits on the mesh."""
        return Evaluator(self.objective, self.mesh, self.evaluation_batches)

    def inputs_of(self, split: str) -> list[str]:
        """Returns the model's inputs that a split provides. Splits of a mixture may lack some."""
        available = getattr(self.dataset, "inputs_of", lambda split: self.dataset.inputs)(split)
        return [name for name in self.specs if name in available]

    def evaluate_subsets(
        self, parameters: Any, split: str, *, step: int = 0, advance: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, float]]:
        """Evaluates each subset of the split's inputs, at data step `step` of the parameters.

        `advance` is called after each batch.

        Returns:
          `{"audio+image": metrics with only these present}`.
        """
        present = subsets(self.inputs_of(split))
        absent = [[name for name in self.specs if name not in subset] for subset in present]
        metrics = self.evaluator.run_each(parameters, split, absent, step=step, advance=advance)
        return {subset_name(subset): row for subset, row in zip(present, metrics, strict=True)}

    def ceilings(self, split: str) -> dict[str, dict[str, float]]:
        """Returns known upper bounds of accuracy, `{"TASK/accuracy": {subset of the inputs: bound}}`."""
        known = self.dataset.ceilings(split)
        targets = {name: section.get("target") or name for name, section in self.config.tasks.items()}
        return {f"{name}/accuracy": known[target] for name, target in targets.items() if target in known}


def schedule_changes(old: dict[str, Any], new: dict[str, Any], step: int) -> list[str]:
    """Returns one line for each schedule that ends at another step in the config `new` than in `old`.

    Args:
      old: plain config of the run so far.
      new: plain config of its continuation.
      step: last step of the run so far.
    """

    def sections(raw):
        weights = {f"tasks.{name}.weight": task.get("weight", 1.0) for name, task in raw["tasks"].items()}
        return {"schedule": raw["schedule"], **weights}

    lines, before = [], sections(old)
    for where, section in sections(new).items():
        ends = [schedule_length(s, raw["train"]["steps"]) for s, raw in ((before[where], old), (section, new))]
        if ends[0] != ends[1] and None not in ends:
            was, now = (float(make_schedule(section, where, end)(step)) for end in ends if end)
            what = "the learning rate" if where == "schedule" else f"the weight of {where.split('.')[1]}"
            lines.append(
                f"warning: {where} now ends at step {ends[1]:,}, not {ends[0]:,}: after step {step:,} {what} is "
                f"{now:.3g}, not {was:.3g}; set {where}.steps = {ends[0]} to keep it"
            )
    return lines


def _zeros(shapes: Any) -> Any:
    """Replaces abstract shapes by zero arrays, because JAX reuses the cached trace for arrays only."""
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)


def plain(raw: Any) -> dict[str, Any]:
    """Converts a config to the plain values of `config.json`: dicts with sorted keys, lists, numbers, strings.

    Raises:
      UserError: if a value is not JSON-serialisable.
    """
    try:
        raw = raw.to_dict() if hasattr(raw, "to_dict") else raw
        # Sorted, like config.json and ConfigDict, because random draws and fusion depend on the order of the encoders.
        values = json.loads(json.dumps(raw, sort_keys=True))
    # Circular values raise ValueError.
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError("config", str(error), "use numbers, strings, lists and dicts only") from error
    if not isinstance(values, dict):
        raise UserError("config", f"{values!r:.60} is not a dict", "give a dict of sections")
    return values


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
        dataset_options = getattr(dataset, "dataset_options", {}).get(name, {})
        section = {"kind": dataset.inputs[name], **dataset_options, **config.inputs.get(name, {})}
        cls, options = choose(MODALITIES, section, f"data.inputs.{name}")
        with convert_value_errors(f"data.inputs.{name}"):
            modalities[name] = cls(options)
    return modalities


def _augmentations(config: DataConfig, dataset: Dataset) -> dict[str, list[Any]]:
    augmentations: dict[str, list[Any]] = {}
    for name, sections in config.augment.items():
        table = AUGMENTATIONS.get(dataset.inputs[name], {})
        for index, section in enumerate(sections):
            cls, options = choose(table, section, f"data.augment.{name}[{index}]")
            augmentations.setdefault(name, []).append(cls(options))
    return augmentations

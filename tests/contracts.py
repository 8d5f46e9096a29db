"""Contract that every entry of a table must satisfy: encoders, fusions, tasks, loss transforms, estimators.

A new file is tested the moment it has its line in a table: `tests/test_contracts.py` goes through the tables and calls
each `check_…` here on a small model with the new part in it. Sizes are set by the usual names of fields (`SMALL`).

The promises: what is absent changes nothing, whatever is written there; 1 device = 8 devices; accumulated = whole
batch; packed = each alone; scanned = unrolled; bfloat16 is close to float32; what is saved is restored; every parameter
has a gradient, and the loss falls.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from mmjax.encoders import ENCODERS
from mmjax.errors import UserError
from mmjax.fusion import FUSIONS
from mmjax.layers import Precision
from mmjax.model import Model, ModelConfig
from mmjax.sharding import MeshConfig, make_mesh, parameter_shardings, place_batch
from mmjax.tasks import TASKS
from mmjax.tokens import Batch, Input, InputSpec, Target, TargetSpec
from mmjax.training import ESTIMATORS, LOSS_TRANSFORMS
from mmjax.training.objective import Objective, Wrapper
from mmjax.training.state import TrainState
from mmjax.training.step import Trainer, compile_step, state_shardings

SMALL: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "hidden": 32,
    "patch": 4,
    "channels": 16,
    "blocks": (1, 1),
    "bins": 16,
    "normalise": "recording",
    "frequency_mask": 4,
    "time_mask_ms": 40.0,
    "queries": 2,
    "groups": 6,
    "neighbours": 4,
    "dropout": 0.1,
    "drop_path": 0.1,
}
"""Sizes for fields of these names, where a part has them and they are numbers of the same form."""

TOLERANCE = 1e-5
"""Tolerance relative to each leaf's largest gradient, in float32 with matmul precision "highest"."""

MESHES = {
    "slice=8": MeshConfig(slice=8, data=1),
    "data=8": MeshConfig(data=8),
    "fsdp=8": MeshConfig(data=1, fsdp=8),
    "sequence=8": MeshConfig(data=1, sequence=8),
    "tensor=8": MeshConfig(data=1, tensor=8),
    "data=2 x fsdp=4": MeshConfig(data=2, fsdp=4),
    "data=4 x tensor=2": MeshConfig(data=4, tensor=2),
    "fsdp=4 x tensor=2": MeshConfig(data=1, fsdp=4, tensor=2),
    "fsdp=2 x sequence=4": MeshConfig(data=1, fsdp=2, sequence=4),
    "sequence=4 x tensor=2": MeshConfig(data=1, sequence=4, tensor=2, sequence_attention="all_to_all"),
    "slice=2 x data=4": MeshConfig(slice=2, data=4),
    "slice=2 x fsdp=4": MeshConfig(slice=2, data=1, fsdp=4),
    "data=2 x fsdp=2 x tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
    "slice=2 x fsdp=2 x sequence=2": MeshConfig(slice=2, data=1, fsdp=2, sequence=2, sequence_attention="all_to_all"),
    "slice=2 x fsdp=2 x tensor=2": MeshConfig(slice=2, data=1, fsdp=2, tensor=2),
    "data=2 x sequence=2 x tensor=2": MeshConfig(data=2, sequence=2, tensor=2),
}
"""Each axis alone, and products of two and three."""

TARGETS = {
    "label": TargetSpec((), "int32", ("a", "b", "c", "d", "e")),
    "soft": TargetSpec((5,), "float32", ("a", "b", "c", "d", "e")),
    # Targets of tasks that cannot use the ones above.
    **{kind: task.example for kind, task in TASKS.items() if task.example is not None},
}
BATCH = 16


@dataclasses.dataclass(frozen=True)
class Part:
    """Entry of a table, tested in a small model."""

    table: str
    kind: str

    def __str__(self):
        return f"{self.table}-{self.kind}"


TABLES = {"encoder": ENCODERS, "fusion": FUSIONS, "task": TASKS, "loss_transform": LOSS_TRANSFORMS}
PARTS = [Part(table, kind) for table, kinds in TABLES.items() for kind in kinds]


def options_of(cls: type) -> dict[str, dataclasses.Field]:
    """Fields of a part's `Config`, by name."""
    return {field.name: field for field in dataclasses.fields(cls.Config)}


def small(cls: type, **overrides: Any) -> dict[str, Any]:
    """Options for `cls.Config`: small sizes and the overrides, restricted to the fields that it has."""
    fields = options_of(cls)
    options = {}
    for name, value in {**SMALL, **overrides}.items():
        if name in fields:
            default = fields[name].default
            known = default is not None and default is not dataclasses.MISSING
            if known and isinstance(default, tuple) != isinstance(value, tuple):
                continue
            options[name] = value
    return options


def sections(
    part: Part, packed: bool = False, **overrides: Any
) -> tuple[ModelConfig, dict[str, Any], dict[str, InputSpec]]:
    """Config sections of a small model with two inputs, `packed` or not, that contains `part`."""
    first = part.kind if part.table == "encoder" else "vit"
    # One input of real numbers and one of token ids.
    kinds = {"first": first, "second": "vit" if first == "text_transformer" else "text_transformer"}
    encoders = {name: {"kind": kind, **small(ENCODERS[kind], **overrides)} for name, kind in kinds.items()}
    form = "packed_example" if packed else "example"
    specs = {name: getattr(ENCODERS[kind], form) for name, kind in kinds.items()}
    # For other parts, use the fusion that compiles fastest.
    fusion = part.kind if part.table == "fusion" else "gated_average"
    config = ModelConfig(encoders=encoders, fusion={"kind": fusion, **small(FUSIONS[fusion], **overrides)})
    tasks = {"task": {"kind": "classification", "target": "label"}}
    if part.table == "task":
        target = part.kind if part.kind in TARGETS else "label"
        named = {"target": target, "pair": ("encoders.first", "encoders.second")}
        tasks["other"] = {"kind": part.kind, "weight": 0.5, **small(TASKS[part.kind], **{**named, **overrides})}
    return config, tasks, specs


class Case:
    """Small trainable model that contains `part`; `parameters` replaces its own initial parameters."""

    def __init__(
        self,
        part: Part,
        precision: str = "float32",
        estimator: dict | None = None,
        parameters: Any = None,
        packed: bool = False,
        **overrides: Any,
    ):
        config, tasks, self.specs = sections(part, packed, **overrides)

        def make():
            rngs = nnx.Rngs(params=jax.random.key(1))
            return Model(config, tasks, self.specs, TARGETS, precision=Precision(compute=precision), rngs=rngs)

        self.graph, self.variables = nnx.split(nnx.eval_shape(make))
        with jax.default_matmul_precision("highest"):
            self.parameters = parameters or moved(jax.jit(lambda: nnx.to_pure_dict(nnx.state(make())))())
        coupled = frozenset(name for name, section in tasks.items() if TASKS[section["kind"]].coupled)
        task_weights = {name: optax.constant_schedule(section.get("weight", 1.0)) for name, section in tasks.items()}
        self.plain = objective = Objective(self.graph, task_weights, 7, coupled, specs=self.specs)
        if part.table == "loss_transform":
            cls = LOSS_TRANSFORMS[part.kind]
            objective = cls(cls.Config())(objective)
        self.objective = objective
        estimator = dict(estimator or {"kind": "plain"})
        cls = ESTIMATORS[estimator.pop("kind")]
        self.trainer = Trainer(objective, cls(cls.Config(**estimator)), optax.adam(3e-3))

    @functools.cached_property
    def _gradients(self):
        return jax.jit(lambda p, b: self.trainer.estimator(self.objective, p, self.objective.prepare(b)))

    def gradients(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """Gradients and metrics of the trainer's estimator on one device."""
        with jax.default_matmul_precision("highest"):
            return self._gradients(self.parameters, batch)

    def gradients_on(self, batch: Batch, mesh_config: MeshConfig, times: int = 1) -> tuple[Any, dict[str, Any]]:
        """Gradients and metrics on a mesh of simulated devices, computed `times` times."""
        mesh, objective = make_mesh(mesh_config), dataclasses.replace(self.objective, layout=mesh_config)
        if isinstance(objective, Wrapper):
            objective = dataclasses.replace(objective, inner=dataclasses.replace(self.plain, layout=mesh_config))
        with jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
            shardings = parameter_shardings(mesh, self.variables, mesh_config.rules)
            parameters = jax.device_put(self.parameters, shardings)
            step = jax.jit(lambda p, b: self.trainer.estimator(objective, p, objective.prepare(b)))
            for _ in range(times):
                found = jax.device_get(step(parameters, place_batch(mesh, batch, batch.size)))
            return found


def moved(parameters: Any) -> Any:
    """Adds noise to every parameter: heads and biases initialised to 0 would hide a missing term."""
    draws = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.1 * draws.normal(size=leaf.shape).astype(leaf.dtype), parameters)


def make_batch(specs: dict[str, InputSpec], garbage: bool = False, size: int = BATCH, seed: int = 0) -> Batch:
    """Batch with unequal presence, lengths and weights; `garbage` fills all masked elements with NaN or invalid ids.

    One example has no input at all, one no target, and ids do not start at 0.
    """
    draws = np.random.default_rng(seed)
    inputs, targets = {}, {}
    for number, (name, spec) in enumerate(specs.items()):
        mask = np.ones((size, *spec.shape[: spec.mask_rank]), bool)
        for row in range(size):
            if spec.mask_rank and row % 3:
                mask[row, (spec.shape[0] * (row % 3)) // 3 :] = False
            if (row + number) % 4 == 0 or row == 5:
                mask[row] = False
        if np.issubdtype(spec.dtype, np.integer):
            values = draws.integers(0, spec.details["vocabulary"], (size, *spec.shape)).astype(spec.dtype)
            absurd: Any = np.iinfo(np.int32).max
        else:
            values, absurd = draws.normal(size=(size, *spec.shape)).astype(spec.dtype), np.nan
        spread = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        inputs[name] = Input(np.where(spread, values, absurd if garbage else 0).astype(spec.dtype), mask)
    weight = np.where(np.arange(size) % 5 == 1, 0.0, 0.5 + np.arange(size) % 3).astype(np.float32)
    for name, target in TARGETS.items():
        shape = (size, *target.shape)
        absurd = np.nan
        if np.issubdtype(target.dtype, np.integer):
            values, absurd = draws.integers(0, max(len(target.classes), 2), shape), -77
        elif target.classes:
            values = draws.dirichlet(np.ones(len(target.classes)), shape[:-1])
        else:
            values = draws.normal(size=shape)
        gone = (weight == 0).reshape(-1, *(1,) * len(target.shape))
        targets[name] = Target(np.where(gone, absurd if garbage else 0, values).astype(target.dtype), weight)
    return Batch(inputs, targets, np.arange(100, 100 + size, dtype=np.int32), np.int32(3))


def make_packed_batches(
    specs: dict[str, InputSpec], rows: int = 8, slots: int = 3, garbage: bool = False
) -> tuple[Batch, Batch]:
    """Batch of packed examples of unequal lengths, some without one or all inputs, and the same examples unpacked.

    One slot of each row is empty. `garbage` fills all masked elements with NaN or invalid ids.
    """
    draws = np.random.default_rng(3)
    size, number = rows * slots, np.arange(rows * slots)
    empty = number % slots == (number // slots) % slots
    packed_inputs, alone = {}, {}
    for order, (name, spec) in enumerate(specs.items()):
        budget = spec.shape[0]
        lengths = draws.integers(1, budget // (slots - 1) + 1, size)
        lengths[empty | ((number + order) % 5 == 0)] = 0
        if np.issubdtype(spec.dtype, np.integer):
            elements = draws.integers(0, spec.details["vocabulary"], (size, *spec.shape)).astype(spec.dtype)
            absurd: Any = np.iinfo(np.int32).max
        else:
            elements, absurd = draws.normal(size=(size, *spec.shape)).astype(spec.dtype), np.nan
        places = draws.integers(0, 4, (size, budget, spec.axes)).astype(np.float32)
        places[..., 0] = np.arange(budget)
        if "chunk" in spec.details:
            # Recordings end inside their last chunk.
            places[..., 1] = (lengths * spec.details["chunk"] - draws.integers(0, 300, size))[:, None]

        def fill(count, slots, elements=elements, places=places, lengths=lengths, spec=spec, absurd=absurd):
            values = np.full((count, *spec.shape), absurd if garbage else 0, spec.dtype)
            mask, positions = np.zeros(values.shape[:2], bool), np.zeros((*values.shape[:2], spec.axes), np.float32)
            segments, begin = np.zeros(values.shape[:2], np.int32), np.zeros(count, int)
            for example, length in enumerate(lengths):
                row, slot = divmod(example, slots)
                index = row, slice(begin[row], begin[row] + length)
                values[index], mask[index], segments[index] = elements[example, :length], True, slot
                positions[index] = places[example, :length]
                begin[row] += length
            return Input(values, mask, positions, segments, slots)

        packed_inputs[name], alone[name] = fill(rows, slots), fill(size, 1)
    others = make_batch({}, garbage, size)
    weights = np.where(empty, 0.0, 1.0).astype(np.float32)
    targets = {name: Target(t.values, t.weight * weights) for name, t in others.targets.items()}
    ids = np.where(empty, -1, others.ids).astype(np.int32)
    packed = Batch(packed_inputs, targets, ids, others.step)
    return packed, dataclasses.replace(packed, inputs=alone)


def assert_close(found: Any, truth: Any, tolerance: float = TOLERANCE) -> None:
    """Checks that each leaf is within `tolerance` of its largest value (or of 1e-3 of the largest of all leaves)."""
    found, truth = jax.device_get((found, truth))
    floor = 1e-3 * max(float(np.abs(leaf).max(initial=0)) for leaf in jax.tree.leaves(truth))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(truth), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = max(np.abs(b).max(initial=0), floor)
        worst = np.abs(a - b).max(initial=0)
        assert np.isfinite(a).all() and worst <= tolerance * scale, (
            f"{jax.tree_util.keystr(path)}: off by {worst:.2e}, {worst / scale:.2e} of {scale:.2e}"
        )


def assert_identical(found: Any, truth: Any) -> None:
    found, truth = jax.device_get((found, truth))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


@functools.lru_cache(maxsize=1)
def standard(part: Part) -> tuple[Case, Batch, tuple[Any, dict[str, Any]]]:
    """Reference case of most checks, its batch, and the gradients and metrics on one device.

    Only the newest is cached: tracing and compiling dominate, and `test_contracts.py` runs part by part.
    """
    case = Case(part)
    batch = make_batch(case.specs)
    return case, batch, case.gradients(batch)


@functools.lru_cache(maxsize=1)
def trained(part: Part) -> tuple[Case, TrainState, list[float]]:
    """Case without dropout, its state after 20 steps on one batch, and the loss before each step."""
    like, batch, _ = standard(part)
    case = Case(part, parameters=like.parameters, dropout=0.0, drop_path=0.0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = case.trainer.init(jax.tree.map(jnp.copy, case.parameters), batch)
    shardings = state_shardings(mesh, case.trainer, case.variables, jax.eval_shape(lambda: state))
    # Place the state like the step's outputs; otherwise the second step would compile again.
    state = jax.device_put(state, shardings)
    step = compile_step(case.trainer, mesh, shardings)
    losses = []
    for _ in range(20):
        state = step(state, batch)
        losses.append(jax.device_get(state.window["loss"]).compute())
    return case, state, losses


# The checks.


def check_absence(part: Part) -> None:
    """NaN and out-of-range ids and labels in masked elements change no output, loss, metric or gradient."""
    case, clean, (gradients, metrics) = standard(part)
    dirty = make_batch(case.specs, garbage=True)
    assert any(np.isnan(x.values).any() for x in dirty.inputs.values() if x.values.dtype.kind == "f")
    features = jax.jit(case.objective.features)
    assert_identical(features(case.parameters, dirty), features(case.parameters, clean))
    assert_identical(case.gradients(dirty), (gradients, metrics))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, metrics)))


def check_devices(part: Part) -> None:
    """Eight devices match one device; parts take turns over the meshes of several axes."""
    case, batch, truth = standard(part)
    products = [config for name, config in MESHES.items() if " x " in name]
    assert_close(case.gradients_on(batch, products[PARTS.index(part) % len(products)]), truth)


def check_accumulation(part: Part) -> None:
    """Four microbatches with unequal presence and weights match the whole batch, with dropout."""
    case, batch, whole = standard(part)
    accumulated = {"kind": "accumulated", "microbatches": 4}
    assert_close(Case(part, estimator=accumulated, parameters=case.parameters).gradients(batch), whole)


def check_packing(part: Part) -> None:
    """Packed examples match the same examples alone, with dropout, on one device, on eight and in microbatches."""
    packs = all(hasattr(ENCODERS[kind], "packed_example") for kind in ([part.kind] if part.table == "encoder" else []))
    if not packs:
        return  # Experiment rejects such encoders; see `test_packing.py`.
    like, _, _ = standard(part)
    try:
        case = Case(part, parameters=like.parameters, packed=True)
    except UserError as error:
        # Refused for a reason, in one line.
        assert part.table == "loss_transform" and "does not support packed inputs" in str(error)
        return
    packed, alone = make_packed_batches(case.specs)
    truth = case.gradients(alone)
    assert_close(case.gradients(packed), truth)
    assert_identical(case.gradients(make_packed_batches(case.specs, garbage=True)[0]), case.gradients(packed))
    products = [config for name, config in MESHES.items() if " x " in name]
    assert_close(case.gradients_on(packed, products[PARTS.index(part) % len(products)]), truth)
    if part.table == "task":
        # Pairs are regrouped across microbatches; splitting the batch is the same for all other parts.
        estimator = {"kind": "accumulated", "microbatches": 4}
        assert_close(Case(part, estimator=estimator, parameters=like.parameters, packed=True).gradients(packed), truth)


def check_scan(part: Part) -> None:
    """Scanned and unrolled layers give the same gradients."""
    if "scan" not in options_of(TABLES[part.table][part.kind]):
        return  # no layers of its own; encoders are compared separately
    case, batch, scanned = standard(part)
    assert_close(Case(part, scan=False, parameters=case.parameters).gradients(batch), scanned)


def check_precision(part: Part) -> None:
    """bfloat16 changes the loss by at most 5 %, the gradients keep their direction, and they stay float32."""
    case, batch, (gradients, metrics) = standard(part)
    rough_gradients, rough = Case(part, precision="bfloat16", parameters=case.parameters).gradients(batch)
    np.testing.assert_allclose(rough["loss"].compute(), metrics["loss"].compute(), rtol=0.05)
    exact, close = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (gradients, rough_gradients))
    cosine = np.vdot(exact, close) / np.linalg.norm(exact) / np.linalg.norm(close)
    assert cosine > 0.98, f"cosine similarity of the gradients is {cosine}"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough_gradients))


def check_restore(part: Part, folder) -> None:
    """A state saved on one device is restored bit for bit onto eight devices."""
    case, state, _ = trained(part)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        mesh = make_mesh(MeshConfig(data=2, fsdp=4))
        shardings = state_shardings(mesh, case.trainer, case.variables, jax.eval_shape(lambda: state))
        abstract = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings
        )
        assert_identical(checkpointer.restore(folder / "state", abstract), state)


def check_learning(part: Part) -> None:
    """Every parameter receives a gradient, and the loss falls."""
    _, _, (gradients, _) = standard(part)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 0, f"no gradient for {jax.tree_util.keystr(path)}"
    _, _, losses = trained(part)
    assert losses[-1] < 0.9 * losses[0], "the loss does not decrease"

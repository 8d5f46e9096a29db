"""The digits model gives the same gradients on every mesh and with every number of microbatches.

It has three encoders, cross-attention fusion, classification and contrastive tasks, dropout, unequal presence and
unequal weights. The sizes are small; `contracts.assert_close` compares.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from configs import digits
from mmjax.experiment import Experiment
from mmjax.sharding import MeshConfig, make_mesh, parameter, parameter_shardings, place_batch, unsharded_parameters
from mmjax.tokens import Batch, Input, Target
from mmjax.training.estimators.accumulated import Accumulated
from mmjax.training.step import compile_step, state_shardings
from tests import contracts
from tests.contracts import assert_close

SIZE = 32
WIDTH = 16
MESHES = {
    "data=8": MeshConfig(data=8),
    "fsdp=8": MeshConfig(data=1, fsdp=8),
    "tensor=2 x fsdp=4": MeshConfig(data=1, fsdp=4, tensor=2),
    "tensor=2 x data=4": MeshConfig(data=4, tensor=2),
}


@functools.cache
def experiment() -> Experiment:
    """The matched digits recipe on one device, with small sizes and dropout."""
    recipe = digits.get_config("matched")
    trunk = {"width": WIDTH, "depth": 2, "heads": 2, "dropout": 0.1, "drop_path": 0.1}
    for encoder in recipe.model.encoders.values():
        encoder.update(trunk)
    recipe.model.encoders.audio.reduction = 8
    recipe.model.fusion.update({"width": WIDTH, "depth": 1, "heads": 2})
    for name in ("image_audio", "image_text"):
        recipe.tasks[name]["width"] = WIDTH
    recipe.data["inputs"]["audio"]["seconds"] = 0.25
    recipe.train.batch_size = SIZE
    recipe.optimizer.clip = None
    with jax.default_matmul_precision("highest"):
        return Experiment(recipe, jax.devices()[:1])


@functools.cache
def parameters():
    """Parameters without zeros, so that no term is hidden."""
    with jax.default_matmul_precision("highest"):
        leaves, tree = jax.tree.flatten(experiment().init_state().parameters)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.device_get(jax.tree.unflatten(tree, moved))


def make_batch(absent: tuple[str, ...] = ()) -> Batch:
    """Batch with unequal presence, lengths, weights and ids; one example has no input and one no target."""
    draws = np.random.default_rng(8)
    rows, inputs = np.arange(SIZE), {}
    for number, (name, spec) in enumerate(experiment().specs.items()):
        mask = np.ones((SIZE, *spec.shape[: spec.mask_rank]), bool)
        if spec.mask_rank:
            mask &= np.arange(spec.shape[0]) < draws.integers(spec.shape[0] // 4, spec.shape[0] + 1, SIZE)[:, None]
        mask[((rows + number) % 4 == 0) | (rows == 5) | (name in absent)] = False
        if np.issubdtype(spec.dtype, np.integer):
            values = draws.integers(0, spec.details["vocabulary"], (SIZE, *spec.shape))
        else:
            values = draws.normal(size=(SIZE, *spec.shape))
        inputs[name] = Input(values.astype(spec.dtype), mask)
    # Weights differ between devices and between microbatches, so that a mean of means would be wrong.
    weight = np.where(rows % 5 == 1, 0.0, 0.25 + rows / 8.0).astype(np.float32)
    targets = {"digit": Target(draws.integers(0, 10, SIZE).astype(np.int32), weight)}
    return Batch(inputs, targets, rows.astype(np.int32) + 100, np.int32(3))


def trainer(microbatches: int = 1):
    plain = experiment().trainer
    if microbatches == 1:
        return plain
    estimator = Accumulated(Accumulated.Config(microbatches=microbatches))
    return dataclasses.replace(plain, estimator=estimator)


def gradients(batch: Batch, mesh_config: MeshConfig | None = None, microbatches: int = 1):
    """Gradients and metrics on one device, or on a mesh of eight."""
    mesh = experiment().mesh if mesh_config is None else make_mesh(mesh_config)
    placed_parameters = jax.device_put(parameters(), parameter_shardings(mesh, experiment().variables))
    with jax.default_matmul_precision("highest"), jax.set_mesh(mesh):
        return jax.device_get(
            trainer(microbatches).gradients_and_metrics(placed_parameters, place_batch(mesh, batch, SIZE))
        )


@functools.cache
def truth():
    return gradients(make_batch())


@functools.cache
def pairs_case():
    """Two encoders whose tokens divide by eight, and a contrastive task in which examples have several positives."""
    sizes = {"patch": 2, "heads": 4}
    case = contracts.Case(contracts.Part("task", "contrastive"), positives="label", **sizes)
    batch = contracts.make_batch(case.specs)
    return case, batch, case.gradients(batch)


# The contract suite tests the other products of axes, each with another part.
QUICK = [name for name in contracts.MESHES if name.count(" x ") != 1]


@pytest.mark.parametrize(
    "mesh", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in contracts.MESHES]
)
def test_each_mesh_gives_the_loss_and_all_gradients_of_one_device(mesh):
    case, batch, truth = pairs_case()
    assert_close(case.gradients_on(batch, contracts.MESHES[mesh]), truth)


@pytest.mark.parametrize(
    "mesh",
    [
        "tensor=2 x fsdp=4",
        pytest.param("data=8", marks=pytest.mark.slow),
        pytest.param("fsdp=8", marks=pytest.mark.slow),
        pytest.param("tensor=2 x data=4", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_what_one_gives(mesh):
    assert_close(gradients(make_batch(), MESHES[mesh]), truth())


# On one device the contract suite tests this too.
@pytest.mark.parametrize("mesh", ["data=8", pytest.param(None, marks=pytest.mark.slow)])
def test_four_microbatches_give_what_the_whole_batch_gives(mesh):
    assert_close(gradients(make_batch(), MESHES.get(mesh), microbatches=4), truth())


def test_the_truth_depends_on_presence_weights_and_dropout():
    batch = make_batch()
    found, metrics = truth()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
    assert set(experiment().objective.coupled) == {"image_audio", "image_text"}
    later = dataclasses.replace(batch, step=np.int32(4))
    even = {"digit": dataclasses.replace(batch.targets["digit"], weight=np.ones(SIZE, np.float32))}
    for other in (later, make_batch(absent=("audio",)), dataclasses.replace(batch, targets=even)):
        assert abs(gradients(other)[1]["digit/loss"].compute() / metrics["digit/loss"].compute() - 1) > 1e-3


def test_a_modality_that_is_absent_everywhere_trains_on_eight_devices():
    batch = make_batch(absent=("audio",))
    expected = gradients(batch)
    found = gradients(batch, MESHES["data=8"])
    assert_close(found, expected)
    assert found[1]["image_audio/loss"].weight == 0
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(found[0]["encoders"]["audio"]))
    assert found[1]["optimizer/skipped"].total == 0


@functools.cache
def placed(name: str):
    """Mesh, shardings and the state of the whole step on a mesh."""
    mesh = make_mesh(MESHES[name])
    shardings = state_shardings(mesh, experiment().trainer, experiment().variables, experiment().shapes)
    start, batch = parameters(), make_batch()
    with jax.set_mesh(mesh):
        state = jax.jit(experiment().trainer.init, out_shardings=shardings)(start, batch)
    return mesh, shardings, state


def test_fsdp_splits_parameters_and_their_moments():
    _, _, state = placed("fsdp=8")
    kernel = state.parameters["encoders"]["text"]["trunk"]["blocks"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, WIDTH, 4 * WIDTH)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == kernel.shape]
    assert len(moments) >= 2, "Adam has two moments of each parameter"
    for leaf in (kernel, *moments):
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves((state.parameters, state.optimizer)))
    whole = sum(leaf.size for leaf in jax.tree.leaves((state.parameters, state.optimizer)))
    assert held < whole / 3, "most of the state is split, apart from biases and norms"


def test_a_large_parameter_that_does_not_divide_is_split_otherwise_or_listed():
    mesh = make_mesh(MESHES["fsdp=8"])

    class Parts(nnx.Module):
        def __init__(self):
            self.fits = parameter(np.zeros((512, 130)), "embed", "none")
            self.turned = parameter(np.zeros((130, 512)), "embed", "none")
            self.whole = parameter(np.zeros((301, 301)), "embed", "none")
            self.small = parameter(np.zeros((13, 13)), "embed", "none")

    state = nnx.state(Parts())
    shardings = parameter_shardings(mesh, state)
    specs = {name: tuple(sharding.spec) for name, sharding in shardings.items()}
    assert specs["fits"] == ("fsdp", None)
    assert specs["turned"] == (None, "fsdp")
    assert unsharded_parameters(mesh, shardings, nnx.to_pure_dict(state)) == ["whole"]


@functools.cache
def lowered(name: str):
    """The whole train step on a mesh, traced but not compiled."""
    mesh, shardings, state = placed(name)
    step = compile_step(experiment().trainer, mesh, shardings)
    return step.lower(state, place_batch(mesh, make_batch(), SIZE))


@pytest.mark.parametrize("name", ["data=8", "tensor=2 x fsdp=4"])
def test_the_step_on_a_mesh_constrains_its_activations(name):
    constraints = [
        line for line in lowered(name).as_text().splitlines() if "sharding_constraint" in line or "@Sharding" in line
    ]
    by_batch = [line for line in constraints if re.search(r'\[\{"(data|fsdp)"', line)]
    # Attention and MLP of each encoder and of the fusion, in the forward pass at least.
    assert len(by_batch) >= 8, f"{len(constraints)} constraints, too few of them over the batch"
    if MESHES[name].tensor > 1:
        assert any('"tensor"' in line for line in constraints), "heads and hidden units are not split"


def test_no_device_computes_on_the_whole_batch():
    compiled = lowered("data=8").compile().as_text()
    hidden = experiment().specs["text"].shape[0], 4 * WIDTH
    assert f"[{SIZE // 8},{hidden[0]},{hidden[1]}]" in compiled, "no array has one device's share of the batch"
    assert f"[{SIZE},{hidden[0]},{hidden[1]}]" not in compiled, "each device holds the activations of all examples"
    assert "all-reduce" in compiled

"""Optimisers by name: on eight devices each does what Optax's own does on one, and the loss falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.errors import UserError
from mmjax.sharding import MeshConfig, make_mesh, place_batch
from mmjax.training.optim.moments import in_bfloat16, stochastic_round
from mmjax.training.optim.optimizer import make_optimizer
from mmjax.training.step import Trainer, compile_step, state_shardings
from tests import contracts

RATE = 3e-3


def shrink(share):
    """An update that takes this share of each parameter away, besides the update that it is given."""
    return optax.stateless(lambda updates, parameters: jax.tree.map(lambda u, p: u - share * p, updates, parameters))


OPTIMIZERS = {
    "adamw": ({"weight_decay": 0.1}, lambda mask: optax.adamw(RATE, weight_decay=0.1, mask=mask)),
    "lion": ({"weight_decay": 0.1, "b1": 0.8}, lambda mask: optax.lion(RATE, b1=0.8, weight_decay=0.1, mask=mask)),
    # Its own weight decay is not times the learning rate; ours is, as with the others.
    "adafactor": (
        {"weight_decay": 0.1, "min_dim_size_to_factor": 16},
        lambda mask: optax.chain(
            optax.adafactor(RATE, min_dim_size_to_factor=16), optax.masked(shrink(RATE * 0.1), mask)
        ),
    ),
    "sgd": (
        {"weight_decay": 0.1, "momentum": 0.9},
        lambda mask: optax.chain(optax.add_decayed_weights(0.1, mask=mask), optax.sgd(RATE, momentum=0.9)),
    ),
}


@pytest.fixture(scope="module")
def case():
    return contracts.Case(contracts.Part("encoder", "vit"), dropout=0.0, drop_path=0.0)


def separate(tree):
    """The same arrays with one dict for each layer of a stack, so that Optax sees them as it would see any model's."""
    if not isinstance(tree, dict):
        return tree
    parts = {key: separate(value) for key, value in tree.items() if key != "layers"}
    if "layers" in tree:
        depth = jax.tree.leaves(tree["layers"])[0].shape[0]
        for layer in range(depth):
            parts[f"layer {layer}"] = jax.tree.map(lambda leaf, layer=layer: leaf[layer], separate(tree["layers"]))
    return parts


def together(layers):
    """Undoes `separate`."""
    if not isinstance(layers, dict):
        return layers
    parts = {key: together(value) for key, value in layers.items() if not key.startswith("layer ")}
    stack = [together(value) for key, value in layers.items() if key.startswith("layer ")]
    return parts | ({"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)} if stack else {})


def maps_only(parameters):
    """What should decay in this model: all arrays of more than one axis but the table of embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not jax.tree_util.keystr(path).endswith("['table']"), parameters
    )


@pytest.mark.parametrize(
    "name", ["adafactor", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lion", "adamw", "sgd"))]
)
def test_each_optimiser_does_on_eight_devices_what_optax_does_on_one(case, name):
    section, make_truth = OPTIMIZERS[name]
    truth = optax.chain(optax.clip_by_global_norm(0.5), make_truth(maps_only))
    optimizer = make_optimizer({"name": name, "clip": 0.5, **section}, optax.constant_schedule(RATE))
    trainer = Trainer(case.objective, case.trainer.estimator, optimizer)
    batch, mesh = contracts.make_batch(case.specs), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.default_matmul_precision("highest"):
        state = trainer.init(jax.tree.map(np.asarray, case.parameters), batch)
        shardings = state_shardings(mesh, trainer, case.variables, jax.eval_shape(lambda: state))
        step, state = compile_step(trainer, mesh, shardings), jax.device_put(state, shardings)
        placed = place_batch(mesh, batch, batch.size)
        losses, gradients_of = [], jax.jit(jax.value_and_grad(lambda p: case.objective(p, batch)[0]))
        parameters, layers = case.parameters, separate(case.parameters)
        moments = truth.init(layers)
        for _ in range(3):
            state = step(state, placed)
            loss, gradients = gradients_of(parameters)
            losses.append(float(loss))
            updates, moments = truth.update(separate(gradients), moments, layers)
            layers = optax.apply_updates(layers, updates)
            parameters = together(layers)
    # Lion and the first step of Adam take the sign of a gradient, which rounding turns where it is almost 0.
    found_layers = jax.tree.leaves(separate(jax.device_get(state.parameters)))
    for found, expected in zip(found_layers, jax.tree.leaves(layers), strict=True):
        off = np.abs(np.asarray(found) - np.asarray(expected))
        assert (off > 1e-5).mean() < 0.01 and off.max() < 6.1 * RATE
    for _ in range(17):
        state = step(state, placed)
    assert gradients_of(jax.device_get(state.parameters))[0] < losses[0]
    split = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim and not leaf.sharding.is_fully_replicated]
    assert split, "each device holds all of the optimiser's state"


def test_moments_in_bfloat16_take_half_the_memory_and_live_where_the_parameters_do(case):
    mesh, batch = make_mesh(MeshConfig(data=1, fsdp=8)), contracts.make_batch(case.specs)
    states = {}
    for moments in ("float32", "bfloat16"):
        optimizer = make_optimizer({"name": "adamw", "moments": moments}, optax.constant_schedule(RATE))
        trainer = Trainer(case.objective, case.trainer.estimator, optimizer)
        state = trainer.init(jax.tree.map(np.asarray, case.parameters), batch)
        shardings = state_shardings(mesh, trainer, case.variables, jax.eval_shape(lambda state=state: state))
        state, step = jax.device_put(state, shardings), compile_step(trainer, mesh, shardings)
        losses = []
        for _ in range(20):
            state = step(state, place_batch(mesh, batch, batch.size))
            losses.append(float(jax.device_get(state.window["loss"]).compute()))
        states[moments] = state, losses
    kept = {
        moments: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
        for moments, (state, _) in states.items()
    }
    assert kept["bfloat16"] * 2 == kept["float32"]
    # Both learn alike.
    (_, exact), (_, rounded) = states.values()
    assert rounded[-1] < 0.9 * rounded[0]
    np.testing.assert_allclose(rounded, exact, rtol=0.05)


def test_a_second_moment_in_bfloat16_follows_its_gradient_on_average():
    steps, gradient = 2000, jnp.full((64, 64), 0.5)
    optimizer = in_bfloat16(optax.scale_by_adam(b1=0.9, b2=0.999))
    _, state = jax.lax.fori_loop(
        0, steps, lambda _, carry: optimizer.update(gradient, carry[1]), (gradient, optimizer.init(gradient))
    )
    second = np.asarray(state.inner.nu, np.float64)
    expected = 0.25 * (1 - 0.999**steps)
    assert second.mean() == pytest.approx(expected, rel=5e-3)
    # Rounded to the nearest, it would have stopped long before.
    stuck = jnp.zeros((), jnp.bfloat16)
    for _ in range(steps):
        stuck = (stuck.astype(jnp.float32) * 0.999 + 0.001 * 0.25).astype(jnp.bfloat16)
    assert float(stuck) < 0.8 * expected


def test_rounding_is_to_one_of_the_two_neighbours_and_right_on_average():
    x = jnp.array([1.0, -3.0, 1 + 2.0**-9, -(2.0 + 2.0**-10), 0.0, jnp.inf, 3.3895e38])
    many = jnp.broadcast_to(x, (20_000, x.size))
    found = np.asarray(jax.jit(stochastic_round, static_argnums=1)(many, 3, jnp.int32(5)), np.float64)
    for column, value in zip(found.T[:5], np.asarray(x, np.float64)[:5], strict=True):
        assert len(set(column)) == (1 if value in (1, -3, 0) else 2)
        assert np.abs(column - value).max() <= 2.0**-7 * abs(value)
        assert column.mean() == pytest.approx(value, abs=2e-4)
    assert np.isinf(found[:, 5]).all() and (found[:, 0] == 1).all()
    again = np.asarray(stochastic_round(many, 3, jnp.int32(6)), np.float64)
    assert (found[:, 2] != again[:, 2]).mean() > 0.1


def test_an_optimiser_that_optax_lacks_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'adam'"):
        make_optimizer({"name": "adamv"}, optax.constant_schedule(RATE))
    with pytest.raises(UserError, match=r"optimizer\.momentun.*momentum"):
        make_optimizer({"name": "sgd", "momentun": 0.9}, optax.constant_schedule(RATE))

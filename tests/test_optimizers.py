"""Optimisers by name: on eight devices each matches Optax's own on one, and the loss decreases."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.layers import Precision, layer_axes
from mmjax.model import Model
from mmjax.sharding import MeshConfig, make_mesh, place_batch
from mmjax.training.optim import TRANSFORMS
from mmjax.training.optim.moments import in_bfloat16, stochastic_round
from mmjax.training.optim.optimizer import make_optimizer
from mmjax.training.optim.schedules import optax_arguments
from mmjax.training.optim.weight_decay import is_matrix
from mmjax.training.step import Trainer, compile_step, state_shardings
from tests import contracts

RATE = 3e-3


def shrink(share):
    """Transform that also subtracts `share` of each parameter."""
    return optax.stateless(lambda updates, parameters: jax.tree.map(lambda u, p: u - share * p, updates, parameters))


OPTIMIZERS = {
    "adamw": ({"weight_decay": 0.1}, lambda mask: optax.adamw(RATE, weight_decay=0.1, mask=mask)),
    "lion": ({"weight_decay": 0.1, "b1": 0.8}, lambda mask: optax.lion(RATE, b1=0.8, weight_decay=0.1, mask=mask)),
    # Optax's Adafactor does not scale its weight decay by the learning rate; mmjax does.
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


def unstack(tree):
    """Splits stacked layers into one dict per layer, so that Optax sees an unstacked model."""
    if not isinstance(tree, dict):
        return tree
    parts = {key: unstack(value) for key, value in tree.items() if key != "layers"}
    if "layers" in tree:
        depth = jax.tree.leaves(tree["layers"])[0].shape[0]
        for layer in range(depth):
            parts[f"layer {layer}"] = jax.tree.map(lambda leaf, layer=layer: leaf[layer], unstack(tree["layers"]))
    return parts


def restack(layers):
    """Inverse of `separate`."""
    if not isinstance(layers, dict):
        return layers
    parts = {key: restack(value) for key, value in layers.items() if not key.startswith("layer ")}
    stack = [restack(value) for key, value in layers.items() if key.startswith("layer ")]
    return parts | ({"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)} if stack else {})


def maps_only(parameters):
    """Mask of parameters that should decay in this model: arrays of two or more axes, except the embedding table."""
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
        parameters, layers = case.parameters, unstack(case.parameters)
        moments = truth.init(layers)
        for _ in range(3):
            state = step(state, placed)
            loss, gradients = gradients_of(parameters)
            losses.append(float(loss))
            updates, moments = truth.update(unstack(gradients), moments, layers)
            layers = optax.apply_updates(layers, updates)
            parameters = restack(layers)
    # Lion and Adam's first step use the sign of a gradient, which rounding may flip where it is almost 0.
    found_layers = jax.tree.leaves(unstack(jax.device_get(state.parameters)))
    for found, expected in zip(found_layers, jax.tree.leaves(layers), strict=True):
        off = np.abs(np.asarray(found) - np.asarray(expected))
        assert (off > 1e-5).mean() < 0.01 and off.max() < 6.1 * RATE
    for _ in range(17):
        state = step(state, placed)
    assert gradients_of(jax.device_get(state.parameters))[0] < losses[0]
    split = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim and not leaf.sharding.is_fully_replicated]
    assert split, "the optimiser state is fully replicated"


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
    # Both precisions learn equally well.
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
    # With round-to-nearest, the moment stops growing long before.
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


def arguments_of(name):
    """Arguments that make an optimiser treat small arrays like large ones, without a warning."""
    return {"adafactor": {"min_dim_size_to_factor": 4}, "noisy_sgd": {"key": 0}}.get(name, {})


def of_optax():
    """Names of all Optax functions with a `learning_rate`."""
    return [name for name in dir(optax) if "learning_rate" in optax_arguments(name)]


REFUSED = ("lbfgs", "optimistic_adam", "rprop", "scale_by_learning_rate", "scale_by_rprop")
NAMES = [name for name in of_optax() if name not in REFUSED]


def layered(rng, scales):
    """Parameters of two layers with different scales, stacked: matrices, convolution kernels over time, vectors."""
    shapes = {"kernel": (8, 6), "scale": (6,), "conv": {"kernel": (3, 8, 6), "bias": (6,)}}
    return jax.tree.map(
        lambda shape: jnp.stack([jnp.asarray(rng.normal(size=shape) * scale, jnp.float32) for scale in scales]),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def trees():
    rng = np.random.default_rng(0)
    head = [jnp.asarray(rng.normal(size=(8, 6)), jnp.float32) for _ in range(2)]
    parameters = {"blocks": {"layers": layered(rng, (1.0, 0.01))}, "head": {"kernel": head[0]}}
    return parameters, {"blocks": {"layers": layered(rng, (0.001, 1.0))}, "head": {"kernel": head[1]}}


def two_updates(optimizer, parameters, gradients):
    state = optimizer.init(parameters)
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


def assert_close(found, expected, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


def of_each(names, make, *arguments):
    """`{name: two_updates(make(name), ...)}`, run eagerly so that all optimisers share compiled operations."""
    return {name: two_updates(make(name), *arguments) for name in names}


def test_each_optimiser_treats_the_layers_of_a_stack_as_optax_treats_separate_arrays():
    parameters, gradients = trees()

    def ours(name):
        section = {"name": name, "clip": None, **arguments_of(name)}
        return make_optimizer(section, optax.constant_schedule(0.1))

    def truth(name):
        known = optax_arguments(name)
        plain = {"weight_decay": 0.0} if "weight_decay" in known else {}
        return getattr(optax, name)(learning_rate=0.1, **plain, **arguments_of(name))

    found = of_each(NAMES, ours, parameters, gradients)
    expected = of_each(NAMES, truth, unstack(parameters), unstack(gradients))
    for name in NAMES:
        assert_close(unstack(found[name]), expected[name])


def test_optimisers_of_single_elements_are_left_as_they_are():
    parameters, gradients = trees()
    for name in ("adam", "sgd", "rmsprop"):
        found = make_optimizer({"name": name, "clip": None}, optax.constant_schedule(0.1))
        truth = optax.chain(getattr(optax, name)(learning_rate=optax.constant_schedule(0.1)))
        programs = {
            str(jax.make_jaxpr(functools.partial(two_updates, optimizer))(parameters, gradients))
            for optimizer in (found, truth)
        }
        assert len(programs) == 1, name


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_each_transform_treats_the_layers_of_a_stack_as_separate_arrays(kind):
    parameters, gradients = trees()
    optimizer = make_optimizer(
        {"name": "sgd", "clip": None, "transforms": [{"kind": kind}]}, optax.constant_schedule(1.0)
    )
    # Without stacks nothing is unstacked: the transform sees each layer's arrays separately.
    found = jax.jit(lambda: two_updates(optimizer, parameters, gradients))()
    expected = jax.jit(lambda: two_updates(optimizer, unstack(parameters), unstack(gradients)))()
    assert_close(unstack(found), expected)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4), (2, 3, 5, 4), (2, 2, 3, 5, 4), (4,)], ids=str)
def test_adaptive_clipping_limits_the_norm_of_each_output_channel(shape):
    rng = np.random.default_rng(1)
    weights, gradient = rng.normal(size=shape), rng.normal(size=shape) * rng.choice([1e-3, 1.0], size=shape[-1])
    norms = [np.sqrt((x**2).reshape(-1, shape[-1]).sum(0)) for x in (weights, gradient)]
    if len(shape) == 1:
        norms = [np.linalg.norm(x) for x in (weights, gradient)]
    expected = gradient * np.minimum(1.0, 0.1 * norms[0] / norms[1])
    section = {"name": "sgd", "clip": None, "transforms": [{"kind": "adaptive_clip", "clipping": 0.1}]}
    optimizer = make_optimizer(section, optax.constant_schedule(1.0))
    tree = {"kernel": jnp.asarray(weights, jnp.float32)}
    updates, _ = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, optimizer.init(tree), tree)
    np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-5)


def test_weights_of_0_are_clipped_as_if_their_norm_were_a_thousandth():
    section = {"name": "sgd", "clip": None, "transforms": [{"kind": "adaptive_clip", "clipping": 0.1}]}
    optimizer, tree = make_optimizer(section, optax.constant_schedule(1.0)), {"kernel": jnp.zeros((3, 2))}
    gradient = jnp.asarray([[3.0, 0.0], [0.0, 0.0], [4.0, 5e-5]])
    updates, _ = optimizer.update({"kernel": gradient}, optimizer.init(tree), tree)
    expected = np.array([[0.6e-4, 0.0], [0.0, 0.0], [0.8e-4, 5e-5]])
    np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-5)


def roles():
    """A parameter of each role, [depth, ...] below `layers`; every matrix is called `kernel`."""
    ones = lambda *shape: jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "text": {"embedding": {"table": ones(2, 4)}, "class_token": ones(2, 4), "position": ones(2, 4)},
        "table": {"column": ones(2, 4), "kernel": ones(2, 4)},
        "pool": {"query": ones(2, 4), "registers": ones(2, 4)},
        "trunk": {"layers": {"kernel": ones(2, 4, 4), "bias": ones(2, 4), "scale": ones(2, 4)}},
        "conv": {"kernel": ones(2, 4, 4), "bias": ones(4)},
        "task": {"log_temperature": ones(4)},
    }


def test_weight_decay_of_each_optimiser_reaches_matrices_and_nothing_else():
    parameters = roles()
    gradients = jax.tree.map(lambda p: 0.01 * jnp.cos(17 * p), parameters)

    def make(rate):
        return lambda name: make_optimizer(
            {"name": name, "weight_decay": rate, "clip": None, **arguments_of(name)}, optax.constant_schedule(0.1)
        )

    without, decayed = (of_each(NAMES, make(rate), parameters, gradients) for rate in (0.0, 0.3))
    for name in NAMES:
        pairs = zip(jax.tree_util.tree_leaves_with_path(without[name]), jax.tree.leaves(decayed[name]), strict=True)
        for (path, a), b in pairs:
            changed = float(jnp.abs(a - b).max()) > 1e-7
            assert changed == (path[-1].key == "kernel"), f"{name} {jax.tree_util.keystr(path)}"


def test_novograd_decays_as_optax_does_where_it_decays():
    parameters, gradients = trees()
    section = {"name": "novograd", "weight_decay": 0.1, "clip": None}
    found = unstack(two_updates(make_optimizer(section, optax.constant_schedule(0.1)), parameters, gradients))
    arguments = unstack(parameters), unstack(gradients)
    with_decay, without = (two_updates(optax.novograd(0.1, weight_decay=rate), *arguments) for rate in (0.1, 0.0))
    mask = maps_only(arguments[0])
    assert_close(found, jax.tree.map(lambda m, a, b: a if m else b, mask, with_decay, without))


def test_patterns_exempt_further_parameters_whatever_the_layer():
    parameters = roles()
    for name in ("adamw", "lamb"):
        section = {"name": name, "weight_decay": 0.3, "clip": None, "no_decay": ["^trunk/layers/kernel$"]}
        states = []
        for rate in (0.0, 0.3):
            optimizer = make_optimizer({**section, "weight_decay": rate}, optax.constant_schedule(0.1))
            states.append(two_updates(optimizer, parameters, parameters))
        assert (states[0]["trunk"]["layers"]["kernel"] == states[1]["trunk"]["layers"]["kernel"]).all()
        assert (states[0]["conv"]["kernel"] != states[1]["conv"]["kernel"]).any()


@functools.cache
def variables():
    """All parameters of small models with each encoder, fusion and task: `[(path, abstract variable)]`."""
    found = []
    for part in contracts.PARTS:
        if part.table != "loss_transform":
            config, tasks, specs = contracts.sections(part)
            make = functools.partial(
                Model, config, tasks, specs, contracts.TARGETS, precision=Precision(compute="float32")
            )
            found += nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(params=0)))))
    return found


def test_parameter_names_determine_role_and_layer_axes():
    matrices, others = set(), set()
    for path, variable in variables():
        axes = variable.get_metadata()["axes"]
        assert len(variable.shape) - len(axes) == layer_axes(path), path
        (matrices if is_matrix(path, variable) else others).add((path[-1], len(axes)))
    assert {name for name, _ in matrices} == {"kernel"}
    # Among the others, only these have more than one axis.
    assert {name for name, rank in others if rank > 1} <= {"table", "column", "query", "queries"}


def test_gradients_are_clipped_to_a_global_norm():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    for clip, factor in ((1.0, 0.2), (4.0, 0.8), (5.5, 1.0), (None, 1.0)):
        optimizer = make_optimizer({"name": "sgd", "clip": clip}, optax.constant_schedule(1.0))
        updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
        assert_close(updates, jax.tree.map(lambda g, factor=factor: -factor * g, tree))


def test_the_moving_average_is_its_closed_form_after_1000_steps():
    """Gradient 1 with SGD: parameters fall by the rate each step; the EMA decay grows from 0.1 to its cap."""
    cap, rate, steps = 0.98, 0.01, 1000

    class Objective:
        def prepare(self, batch):
            return batch

    trainer = Trainer(Objective(), lambda _, p, __: (jax.tree.map(jnp.ones_like, p), {}), optax.sgd(rate), cap)
    state = trainer.init({"kernel": jnp.float32(5.0)}, None)
    state = jax.jit(lambda state: jax.lax.fori_loop(0, steps, lambda _, s: trainer.step(s, None), state))(state)
    time = np.arange(steps)
    decay = np.minimum(cap, (1 + time) / (10 + time))
    # Product of the later decays: the remaining weight of each step's term.
    later = np.cumprod(np.append(decay, 1.0)[::-1])[::-1]
    expected = later[0] * 5.0 + ((1 - decay) * later[1:] * (5.0 - rate * (time + 1))).sum()
    assert float(state.ema["kernel"]) == pytest.approx(expected, abs=1e-3)
    # The EMA lags by decay / (1 - decay) steps; without the cap it would lag by far more.
    assert float(state.ema["kernel"] - state.parameters["kernel"]) == pytest.approx(rate * cap / (1 - cap), rel=0.02)


def test_rounding_is_drawn_for_each_array_and_step_on_its_own():
    value = jnp.full((128, 128), 1 + 2.0**-8)  # halfway between two neighbours
    optimizer = in_bfloat16(optax.trace(1.0))
    state = optimizer.init({"a": value, "b": value})
    zero = jax.tree.map(jnp.zeros_like, {"a": value, "b": value})
    _, first = optimizer.update({"a": value, "b": value}, state)
    _, second = optimizer.update({"a": value, "b": value}, first._replace(inner=state.inner))
    up = [
        np.asarray(tree, np.float64) > 1 for s in (first, second) for tree in (s.inner.trace["a"], s.inner.trace["b"])
    ]
    for draws in up:
        assert draws.mean() == pytest.approx(0.5, abs=0.02)
    for one, other in itertools.combinations(up, 2):
        # Independent draws agree half of the time.
        assert (one == other).mean() == pytest.approx(0.5, abs=0.02)
    _, third = optimizer.update(zero, first)
    assert_close(third.inner, first.inner)


@pytest.mark.parametrize("name", REFUSED)
def test_functions_of_optax_that_cannot_train_are_refused_in_one_line(name):
    with pytest.raises(UserError, match=r"^optimizer\.name: .*; \S.*$"):
        make_optimizer({"name": name}, optax.constant_schedule(RATE))


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "adamw", "b1": "x"}, "optimizer.b1: 'x' is a str; give a number"),
        ({"name": "adamw", "mu_dtype": "float99"}, "optimizer: "),
        ({"name": "adafactor", "clipping_threshold": 0}, "optimizer.clipping_threshold: 0 removes all updates"),
        ({"name": "adafactor", "weight_decay_rate": 0.1}, "optimizer.weight_decay_rate: is not scaled"),
        ({"name": "lars", "weight_decay_mask": True}, "optimizer.weight_decay_mask: the weight decay mask follows"),
        ({"name": "sgd", "clip": 0.0}, "optimizer.clip: 0.0 is out of range; give a value above 0, or None"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused_in_one_line(section, expected):
    with pytest.raises(UserError) as caught:
        make_optimizer(section, optax.constant_schedule(RATE))
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


def test_an_optimiser_that_optax_lacks_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'adam'"):
        make_optimizer({"name": "adamv"}, optax.constant_schedule(RATE))
    with pytest.raises(UserError, match=r"optimizer\.momentun.*momentum"):
        make_optimizer({"name": "sgd", "momentun": 0.9}, optax.constant_schedule(RATE))

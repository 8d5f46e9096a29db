"""The mesh: its axes, sharding rules of a config, and the traffic on each kind of link."""

from __future__ import annotations

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.config import build
from mmjax.errors import UserError
from mmjax.layers import Transformer, TransformerConfig
from mmjax.sharding import (
    MeshConfig,
    Rule,
    batch_sharding,
    format_mesh,
    make_mesh,
    parameter,
    parameter_shardings,
    replicated,
    shard,
    use_mesh_config,
)
from mmjax.sharding import mesh as mesh_module
from mmjax.tokens import Tokens


def test_one_size_takes_the_devices_that_are_left():
    sizes = dict(make_mesh(MeshConfig(slice=2, data=-1, tensor=2)).shape)
    assert sizes == {"slice": 2, "data": 2, "fsdp": 1, "sequence": 1, "tensor": 2}
    assert format_mesh(sizes) == "slice=2 x data=2 x tensor=2" and format_mesh({"data": 1, "fsdp": 1}) == "data=1"


@pytest.mark.parametrize(
    "section, message",
    [
        ({"data": 3}, r"mesh: data=3 does not divide 8 device\(s\); make the sizes multiply to 8"),
        ({"fsdp": -1}, "data=-1 x fsdp=-1 has more than one -1; give all sizes but one"),
        ({"sequence": 0}, "has a size below 1"),
        ({"rules": [{"pattern": "(", "axes": []}]}, r"mesh.rules\[0\]: pattern '\('"),
        ({"rules": [{"pattern": "embed", "axes": ["tensors"]}]}, "no axis 'tensors'; did you mean 'tensor'"),
        ({"attention": "flash"}, "mesh.attention: 'flash' is not a choice"),
    ],
)
def test_a_wrong_mesh_is_refused_in_one_line(section, message):
    with pytest.raises(UserError, match=message):
        make_mesh(build(MeshConfig, section, "mesh"))


class Parts(nnx.Module):
    def __init__(self):
        self.table = parameter(jnp.zeros((256, 512)), "vocabulary", "embed")
        self.kernel = parameter(jnp.zeros((512, 512)), "embed", "hidden")


def specs(*rules: tuple[str, tuple[str, ...]]):
    config = MeshConfig(data=1, fsdp=4, tensor=2)
    rules = tuple(Rule(pattern=pattern, axes=axes) for pattern, axes in rules)
    shardings = parameter_shardings(make_mesh(config), nnx.state(Parts()), rules)
    return {name: tuple(sharding.spec) for name, sharding in shardings.items()}


def test_rules_of_the_config_go_before_the_table():
    assert specs() == {"table": ("tensor", "fsdp"), "kernel": ("fsdp", "tensor")}
    assert specs(("embed", ())) == {"table": ("tensor", None), "kernel": (None, "tensor")}
    # The first matching rule applies, and a pattern may name a single parameter.
    assert specs(("table:.*", ())) == {"table": (None, None), "kernel": ("fsdp", "tensor")}
    assert specs(("kernel:embed", ("fsdp",)), ("embed", ())) == {
        "table": ("tensor", None),
        "kernel": ("fsdp", "tensor"),
    }
    assert specs(("vocabulary", ("tensor", "fsdp")), ("table:embed", ()))["table"] == (("tensor", "fsdp"), None)


def test_a_rule_that_matches_nothing_or_splits_twice_is_refused():
    with pytest.raises(UserError, match=r"mesh.rules\[0\].pattern: 'embedd' matches no axis; did you mean 'embed'"):
        specs(("embedd", ()))
    with pytest.raises(UserError, match="matches no axis"):
        specs(("batch", ("tensor",)))
    with pytest.raises(UserError, match="are split over one mesh axis"):
        specs(("hidden", ("fsdp",)))


def test_rules_hold_for_activations_too():
    config = MeshConfig(data=2, sequence=2, tensor=2, rules=(Rule(pattern="tokens", axes=("sequence", "tensor")),))
    found = {}

    def look(x, hidden):
        with use_mesh_config(config):
            found["norm"] = shard(x, "batch", "tokens", "width")
            # If two dimensions request the same mesh axis, the later one gets it.
            found["hidden"] = shard(hidden, "batch", "tokens", "hidden")
        return dict(found)

    with jax.set_mesh(make_mesh(config)):
        out = jax.jit(look)(jnp.zeros((4, 8, 16)), jnp.zeros((4, 8, 32)))
    assert out["norm"].addressable_shards[0].data.shape == (2, 2, 16)
    assert out["hidden"].addressable_shards[0].data.shape == (2, 4, 16)


def test_devices_of_a_slice_are_adjacent_on_the_mesh():
    devices = [
        types.SimpleNamespace(
            id=i,
            slice_index=i % 2,
            process_index=0,
            platform="tpu",
            device_kind="any",
            coords=(i // 2, 0, 0),
            core_on_chip=0,
        )
        for i in range(8)
    ]
    laid = mesh_module._arrange_devices((2, 1, 2, 1, 2), devices)
    assert laid.shape == (2, 1, 2, 1, 2)
    assert [{device.slice_index for device in laid[i].flat} for i in range(2)] == [{0}, {1}]
    with pytest.raises(UserError, match="mesh.slice: the devices span 2 slices; give 2"):
        mesh_module._arrange_devices((1, 8, 1, 1, 1), devices)


# Traffic on each kind of link, from the compiled program.

DEPTH, WIDTH = 4, 32


@functools.cache
def compiled(config: MeshConfig) -> str:
    """Compiled gradient of a small Transformer."""
    mesh, depth = make_mesh(config), DEPTH
    sizes = TransformerConfig(width=WIDTH, depth=depth, heads=4)
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(sizes, rngs=nnx.Rngs(params=0))))
    shardings = parameter_shardings(mesh, state)
    parameters = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nnx.to_pure_dict(state),
        shardings,
    )
    rows = batch_sharding(mesh)
    values = jax.ShapeDtypeStruct((16, 8, WIDTH), jnp.float32, sharding=rows)
    mask = jax.ShapeDtypeStruct((16, 8), bool, sharding=rows)

    def loss(parameters, values, mask):
        with use_mesh_config(config):
            tokens = nnx.merge(graph, parameters)(Tokens.make(values, mask), None)
        return jnp.square(tokens.values).mean()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss), out_shardings=(replicated(mesh), shardings))
        return step.lower(parameters, values, mask).compile().as_text()


@dataclasses.dataclass(frozen=True)
class Collective:
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program, with the shapes of their results and the devices of each group."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", line)
        if not match:
            continue
        shapes = tuple(
            tuple(int(size) for size in dims.split(",") if size) for dims in re.findall(r"\w+\[([\d,]*)\]", match[1])
        )
        found.append(Collective(match[2], shapes, tuple(groups_of(line))))
    return found


def groups_of(line: str) -> list[tuple[int, ...]]:
    """Device ids of each group, from any textual form that XLA uses."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if pairs:
        return [tuple(map(int, pair.split(","))) for pair in re.findall(r"(\d+,\d+)", pairs[1])]
    listed = re.search(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", line)
    if listed:
        return [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    order = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"

    def arranged(dims: str, axes: str | None) -> np.ndarray:
        shape = tuple(map(int, dims.split(",")))
        devices = np.arange(np.prod(shape)).reshape(shape)
        return devices.transpose(tuple(map(int, axes.split(",")))) if axes else devices

    iota = re.search(r"replica_groups=\[([\d,]+)\]<=" + order, line)
    if iota:
        return [tuple(row) for row in arranged(*iota.groups()[1:]).reshape(tuple(map(int, iota[1].split(","))))]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + order + r"\))? \{([^}]*)\}", line)
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    devices = arranged(named[2], named[3]) if named[2] else np.arange(np.prod(list(sizes.values())))
    devices = devices.reshape(tuple(sizes.values()))
    over = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[4])]
    count = int(np.prod([devices.shape[axis] for axis in over]))
    return [tuple(row) for row in np.moveaxis(devices, over, range(-len(over), 0)).reshape(-1, count)]


def test_only_sums_of_gradients_cross_between_slices():
    slow, fast = [], []
    for collective in collectives(compiled(MeshConfig(slice=2, data=1, fsdp=4))):
        crosses = any(len({device // 4 for device in group}) > 1 for group in collective.groups)
        (slow if crosses else fast).append(collective)
    assert {collective.kind for collective in fast} >= {"all-gather"}, "parameters must be gathered within a slice"
    assert {collective.kind for collective in slow} == {"all-reduce"}
    sizes = TransformerConfig(width=WIDTH, depth=DEPTH, heads=4)
    parameters = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Transformer(sizes, rngs=nnx.Rngs(params=0)))))
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(parameters))
    # In the scan, a layer's sum appears once in the text and runs DEPTH times.
    crossed = sum(int(np.prod(shape)) for collective in slow for shape in collective.shapes)
    assert crossed <= total + 64, "more than the gradients crosses slices"


def test_parameters_are_gathered_a_layer_at_a_time():
    for config in (MeshConfig(data=1, fsdp=8), MeshConfig(slice=2, data=1, fsdp=4)):
        gathered = [shape for c in collectives(compiled(config)) if c.kind == "all-gather" for shape in c.shapes]
        kernel = (WIDTH, 4 * WIDTH)
        assert any(tuple(size for size in shape if size > 1) == kernel for shape in gathered), gathered
        assert all(np.prod(shape) <= np.prod(kernel) for shape in gathered), "more than one layer is gathered at once"


def test_a_large_parameter_whose_own_dimension_is_odd_is_split_along_its_largest():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    class Odd(nnx.Module):
        def __init__(self):
            self.large = parameter(jnp.zeros((128, 512, 4, 31)), "none", "none", "none", "embed")
            self.small = parameter(jnp.zeros((8, 31)), "none", "embed")

    specs = {name: tuple(each.spec) for name, each in parameter_shardings(mesh, nnx.state(Odd())).items()}
    assert specs == {"large": (None, "fsdp", None, None), "small": (None, None)}

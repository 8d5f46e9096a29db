"""Collectives of compiled programs: kinds, bytes, axes and seconds have closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from mmjax.planning import topology_devices
from mmjax.planning.chips import CHIPS
from mmjax.planning.collectives import crossed_axes, reach, replica_groups
from mmjax.planning.hlo import Instruction
from mmjax.planning.schedule import read_schedule
from mmjax.sharding import MeshConfig, make_mesh
from tests.compiled import compile_on, topology_mesh

ROWS, COLUMNS = 4096, 1024
FOUR = 4 * ROWS * COLUMNS
"""Bytes of the whole array."""
CHIP = CHIPS["TPU v5 lite"]


def over(axis, function, inside, outside):
    def wrapped(x):
        return jax.shard_map(
            function, mesh=jax.sharding.get_abstract_mesh(), in_specs=inside, out_specs=outside, check_vma=False
        )(x)

    return wrapped


CASES = {
    # name: (function of x, split of x, kind, axis, bytes)
    "psum": (
        over("data", lambda x: jax.lax.psum(x, "data"), P("data"), P()),
        ("data",),
        "all-reduce",
        "data",
        FOUR // 4,
    ),
    "all_gather": (
        over("data", lambda x: jax.lax.all_gather(x, "data", tiled=True), P("data"), P()),
        ("data",),
        "all-gather",
        "data",
        FOUR,
    ),
    "psum_scatter": (
        over("tensor", lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True), P(), P("tensor")),
        (),
        "reduce-scatter",
        "tensor",
        FOUR,
    ),
    "all_to_all": (
        over("data", lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True), P("data"), P(None, "data")),
        ("data",),
        "all-to-all",
        "data",
        FOUR // 4,
    ),
    "ppermute": (
        over("data", lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)]), P("data"), P("data")),
        ("data",),
        "collective-permute",
        "data",
        FOUR // 4,
    ),
    "psum over both": (
        over("both", lambda x: jax.lax.psum(x, ("data", "tensor")), P("data"), P()),
        ("data",),
        "all-reduce",
        "data+tensor",
        FOUR // 4,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_collective_moves_the_bytes_of_its_array(name):
    function, split, kind, axis, moved = CASES[name]
    mesh = topology_mesh("v5e:2x4", data=4, tensor=2)
    _, module = compile_on(mesh, function, ((ROWS, COLUMNS), "float32", split))
    found = [each for each in read_schedule(module, mesh, CHIP).collectives.values() if each.bytes > 1024]
    assert [(each.collective.kind, "+".join(each.collective.axes)) for each in found] == [(kind, axis)]
    assert found[0].bytes == moved and found[0].runs == 1
    assert found[0].seconds > 0 and found[0].exposed <= found[0].seconds * 1.001


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
    mesh = topology_mesh("v5e:2x4", data=8)

    def body(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(jax.lax.psum(x, "data")), None), x, length=9)[0]

    _, module = compile_on(mesh, over("data", body, P(), P()), ((ROWS, COLUMNS), "float32", ()))
    moved = [each for each in read_schedule(module, mesh, CHIP).collectives.values() if each.bytes > 1024]
    assert sum(each.runs for each in moved) == 9 and sum(each.bytes for each in moved) == 9 * FOUR


def test_gathers_of_the_next_layers_parameters_hide_behind_the_product_of_this_one():
    """Large products, small parameters: what the schedule starts early costs nothing, and less than it would alone."""
    mesh = topology_mesh("v5e:2x4", data=8)
    depth, width, rows = 6, 2048, 8 * 8192

    def forward(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    _, module = compile_on(
        mesh,
        forward,
        ((depth, width, width), "bfloat16", (None, "data")),
        ((rows, width), "bfloat16", ("data",)),
    )
    schedule = read_schedule(module, mesh, CHIP)
    # XLA makes a ring of permutes of a gather that a product waits for, and of those a few more than need be.
    moved = sum(each.bytes for each in schedule.collectives.values())
    assert 7 / 8 <= moved / (2 * width**2 * depth) <= 1.5
    assert schedule.exposed < 0.5 * sum(each.seconds for each in schedule.collectives.values())
    assert schedule.seconds == pytest.approx(schedule.compute + schedule.kernels + schedule.exposed, rel=1e-6)


@pytest.mark.parametrize(
    ("topology", "sizes", "axis", "dimensions"),
    [
        ("v5e:16x16", {"data": 16, "fsdp": 16}, "fsdp", ((16, True),)),
        ("v5e:16x16", {"data": 1, "fsdp": 256}, "fsdp", ((16, True), (16, True))),
        ("v5e:4x4", {"data": 4, "fsdp": 4}, "fsdp", ((4, False),)),
        ("v5p:4x4x8", {"data": 16, "fsdp": 8}, "fsdp", ((8, True),)),
        ("v5p:2x2x2", {"data": 1, "fsdp": 8}, "fsdp", ((2, False), (2, False), (2, False))),
    ],
)
def test_links_follow_from_the_places_in_the_torus(topology, sizes, axis, dimensions):
    mesh = make_mesh(MeshConfig(**sizes), topology_devices(topology))
    members = np.arange(mesh.size).reshape(sizes["data"], sizes["fsdp"])[0]
    assert crossed_axes(members, mesh) == (axis,)
    found = reach(members, mesh, CHIP if topology.startswith("v5e") else CHIPS["TPU v5"])
    assert found.dimensions == dimensions and found.slices == 1 and found.cores == 1


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_are_read_in_every_form(text, groups):
    instruction = Instruction("x", "f32[1]", "all-reduce", (), f"channel_id=1, {text}", False)
    assert sorted(map(sorted, replica_groups(instruction, 4).tolist())) == sorted(map(sorted, groups))

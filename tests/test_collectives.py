"""Collectives of compiled programs against closed forms: kinds, bytes, axes and seconds."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from mmjax.planning import topology_devices
from mmjax.planning.chips import CHIPS
from mmjax.planning.collectives import _cross_slice, crossed_axes, group_topology, replica_groups
from mmjax.planning.hlo import Instruction, Module
from mmjax.planning.schedule import simulate_step
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
    found = [each for each in simulate_step(module, mesh, CHIP).collectives.values() if each.bytes > 1024]
    assert [(each.collective.kind, "+".join(each.collective.axes)) for each in found] == [(kind, axis)]
    assert found[0].bytes == moved and found[0].executions == 1
    assert found[0].seconds > 0 and found[0].exposed_seconds <= found[0].seconds * 1.001


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
    mesh = topology_mesh("v5e:2x4", data=8)

    def body(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(jax.lax.psum(x, "data")), None), x, length=9)[0]

    _, module = compile_on(mesh, over("data", body, P(), P()), ((ROWS, COLUMNS), "float32", ()))
    moved = [each for each in simulate_step(module, mesh, CHIP).collectives.values() if each.bytes > 1024]
    assert sum(each.executions for each in moved) == 9 and sum(each.bytes for each in moved) == 9 * FOUR


def test_gathers_of_the_next_layers_parameters_hide_behind_the_product_of_this_one():
    """Collectives that start early behind large products are hidden: exposed time is below half of their own time."""
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
    timing = simulate_step(module, mesh, CHIP)
    # XLA turns a gather that feeds a product into a ring of permutes, with a few more than the minimum.
    moved = sum(each.bytes for each in timing.collectives.values())
    assert 7 / 8 <= moved / (2 * width**2 * depth) <= 1.5
    assert timing.exposed_seconds < 0.5 * sum(each.seconds for each in timing.collectives.values())
    # Weights are prefetched during a product that reads little from HBM: almost no extra time.
    assert 0 <= timing.prefetch_seconds < 0.02 * timing.step_seconds
    assert timing.step_seconds == pytest.approx(
        timing.compute_seconds + timing.kernel_seconds + timing.exposed_seconds + timing.prefetch_seconds, rel=1e-6
    )


@pytest.mark.parametrize(
    ("transfer", "kind", "crossings"),
    [("ALL_REDUCE", "all-reduce", 2), ("REDUCE_SCATTER", "reduce-scatter", 1), ("ONE_TO_ONE", "collective-permute", 1)],
)
def test_a_ring_over_slices_sends_all_but_one_part_once_or_for_a_sum_twice(transfer, kind, crossings):
    devices = np.array([[types.SimpleNamespace(slice_index=index)] * 2 for index in range(4)])
    mesh = types.SimpleNamespace(devices=devices, axis_names=("slice", "data"))
    received = types.SimpleNamespace(
        attributes=f'_xla_megascale_transfer_type="{transfer}"', arrays=[types.SimpleNamespace(bytes=800)], op_name="x"
    )
    (found,) = _cross_slice(received, mesh, CHIP)
    assert (found.kind, found.axes, found.bytes) == (kind, ("slice",), 800)
    assert found.seconds == pytest.approx(crossings * 3 / 4 * 800 / CHIP.network_bandwidth)


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
    found = group_topology(members, mesh, CHIP if topology.startswith("v5e") else CHIPS["TPU v5"])
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


SPARSE_CORES = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%sent (x: f32[1024,1024], ready: token[]) -> f32[1024,1024] {
  %ready = token[] parameter(1)
  %x = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  ROOT %sum.1 = f32[1024,1024]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
}, execution_thread="sparsecore"

%busy (y: f32[1024,1024]) -> f32[1024,1024] {
  %y = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  ROOT %twice = f32[1024,1024]{1,0:T(8,128)} add(%y, %y)
}

ENTRY %main (g: f32[1024,1024], token: token[]) -> f32[1024,1024] {
  %g = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %token = token[] parameter(1)
  %start = ((f32[1024,1024]{1,0:T(8,128)}, token[]), f32[1024,1024]{1,0:T(8,128)}) call-start(%g, %token), \
async_execution_thread="sparsecore", to_apply=%sent
  %work = f32[1024,1024]{1,0:T(8,128)} fusion(%g), kind=kLoop, calls=%busy, backend_config={"estimated_cycles":"22000"}
  ROOT %done = f32[1024,1024]{1,0:T(8,128)} call-done(%start)
}
"""


def test_what_sparse_cores_send_beside_the_program_is_seen():
    mesh, chip = topology_mesh("tpu7x:2x1x1", data=4), CHIPS["TPU7x"]
    timing = simulate_step(Module(SPARSE_CORES), mesh, chip)
    (moved,) = timing.collectives.values()
    assert (moved.collective.kind, moved.collective.axes, moved.bytes) == ("all-reduce", ("data",), 4 * 1024**2)
    # 22,000 cycles at 2.2 GHz.
    assert timing.compute_seconds == pytest.approx(1e-5)
    assert moved.exposed_seconds == pytest.approx(moved.seconds - 1e-5)
    assert timing.step_seconds == pytest.approx(moved.seconds)


def test_a_gather_on_sparse_cores_has_the_bytes_of_the_whole():
    """TPU7x offloads large collectives to SparseCores, in another text form than that of other TPUs."""
    width = 8192

    def forward(kernel, x):
        return jax.lax.with_sharding_constraint(kernel, P()), jnp.tanh(x)

    mesh = topology_mesh("tpu7x:2x2x1", data=8)
    kernel, x = ((width, width), "bfloat16", ("data",)), ((8 * width, width), "bfloat16", ("data",))
    compiled, module = compile_on(mesh, forward, kernel, x)
    assert 'async_execution_thread="sparsecore"' in compiled.as_text()
    (gathered,) = simulate_step(module, mesh, CHIPS["TPU7x"]).collectives.values()
    assert gathered.collective.kind == "all-gather" and gathered.bytes == 2 * width**2

"""Step times against closed forms: links with latency, and prefetches that share HBM bandwidth with compute."""

from __future__ import annotations

import numpy as np
import pytest
from jax.sharding import Mesh

from mmjax.planning.chips import CHIPS
from mmjax.planning.collectives import collective_seconds
from mmjax.planning.hlo import Module
from mmjax.planning.schedule import simulate_step
from mmjax.planning.topology import topology_devices
from mmjax.sharding import MeshConfig, make_mesh

CHIP = CHIPS["TPU v5 lite"]
MIB = 2**20


@pytest.mark.parametrize(
    ("kind", "axis", "num_bytes", "seconds"),
    [
        # A ring of 16 chips receives 15/16 of the bytes at 2 x 45 GB/s; a small message takes 8 hops of 1 us.
        ("all-gather", "fsdp", 90_000_000, 0.9375e-3),
        ("all-gather", "fsdp", 1024, 8e-6),
        ("reduce-scatter", "data", 1024, 8e-6),
        ("all-reduce", "fsdp", 90_000_000, 2 * 0.9375e-3),
        ("all-reduce", "fsdp", 4, 16e-6),
    ],
)
def test_links_have_a_rate_and_a_latency(kind, axis, num_bytes, seconds):
    mesh = make_mesh(MeshConfig(data=16, fsdp=16), topology_devices("v5e:16x16"))
    members = np.arange(256).reshape(16, 16)[0 if axis == "fsdp" else slice(None), slice(None) if axis == "fsdp" else 0]
    assert collective_seconds(kind, num_bytes, members, mesh, CHIP) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("chip", [chip for kind, chip in CHIPS.items() if kind.startswith("TPU")], ids=lambda c: c.name)
def test_links_are_counted_at_nine_tenths_of_their_nominal_rate(chip):
    nominal = {"v4": 50e9, "v5e": 50e9, "v5p": 100e9, "v6e": 100e9, "tpu7x": 100e9}
    assert chip.link_bandwidth == pytest.approx(0.9 * nominal[chip.name]) and chip.hop_seconds == 1e-6


def program(cycles: int, rows: int, prefetch: str = "copy", destination: str = "S(1)") -> Module:
    """Program with a prefetch of 1 MiB of weights during a fusion of `cycles` that moves `rows` x 1 KiB in HBM."""
    layout = "{1,0:T(8,128)" + destination + "}"
    whole, part = "f32[1024,256]{1,0:T(8,128)}", f"f32[1024,256]{layout}"
    start = f"copy-start = ({part}, {whole}, u32[]{{:S(2)}}) copy-start(%w)"
    if prefetch == "slice":
        whole = "f32[4096,256]{1,0:T(8,128)}"
        start = f"copy-start = (({whole}), {part}, s32[]{{:T(128)}}) slice-start(%w), slice={{[0:1024], [0:256]}}"
    done = prefetch if prefetch == "slice" else "copy"
    config = f'backend_config={{"estimated_cycles":"{cycles}"}}'
    return Module(
        f"""HloModule step, is_scheduled=true

%fused (p: f32[{rows},256]) -> f32[{rows},256] {{
  %p = f32[{rows},256]{{1,0:T(8,128)}} parameter(0)
  ROOT %tanh = f32[{rows},256]{{1,0:T(8,128)}} tanh(%p)
}}

ENTRY %main (w: f32[4096,256], x: f32[{rows},256]) -> f32[{rows},256] {{
  %w = {whole} parameter(0)
  %x = f32[{rows},256]{{1,0:T(8,128)}} parameter(1)
  %{start}
  %y = f32[{rows},256]{{1,0:T(8,128)}} fusion(%x), kind=kLoop, calls=%fused, {config}
  %copy-done = {part} {done}-done(%copy-start)
  ROOT %z = f32[{rows},256]{{1,0:T(8,128)}} copy(%y)
}}
"""
    )


@pytest.mark.parametrize("prefetch", ["copy", "slice"])
@pytest.mark.parametrize(
    ("cycles", "rows", "destination", "hbm_mib", "own_mib"),
    [
        # Prefetch behind 1 us of compute; hidden; behind a fusion that uses half of HBM bandwidth; HBM to HBM, twice.
        (1503, 8, "S(1)", 1, 2 * 8 / 1024),
        (1_503_000, 8, "S(1)", 1, 2 * 8 / 1024),
        (3848, 1024, "S(1)", 1, 2),
        (1503, 8, "", 2, 2 * 8 / 1024),
    ],
)
def test_a_prefetch_takes_the_hbm_time_that_instructions_leave(prefetch, cycles, rows, destination, hbm_mib, own_mib):
    mesh = Mesh(np.asarray(topology_devices("v5e:1x1")), ("data",))
    timing = simulate_step(program(cycles, rows, prefetch, destination), mesh, CHIP)
    compute = cycles / CHIP.clock_hz
    left = max(0.0, compute - own_mib * MIB / CHIP.memory_bandwidth)
    waited = max(0.0, hbm_mib * MIB / CHIP.memory_bandwidth - left)
    assert timing.prefetch_seconds == pytest.approx(waited, rel=1e-9)
    assert timing.step_seconds == pytest.approx(compute + waited, rel=1e-9)


def test_an_instruction_that_slices_reads_the_slice_and_updates_in_place():
    from mmjax.planning.roofline import hbm_bytes

    module = Module(
        """HloModule step, is_scheduled=true

%fused (p: f32[24,256], q: s32[], r: f32[24,256]) -> f32[24,256] {
  %p = f32[24,256]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,256]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={1,256}
  %r = f32[24,256]{1,0} parameter(2)
  ROOT %update = f32[24,256]{1,0} dynamic-update-slice(%r, %slice, %q, %zero)
}

ENTRY %main (a: f32[24,256], i: s32[], b: f32[24,256]) -> f32[24,256] {
  %a = f32[24,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[24,256]{1,0} parameter(2)
  ROOT %fusion = f32[24,256]{1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
}
"""
    )
    assert hbm_bytes(module, module.instructions["fusion"]) == 1024 + 4 + 1024

"""Number of XLA threads for devices simulated on one CPU."""

from __future__ import annotations

import pytest

from mmjax.host.simulated_devices import set_thread_count
from tests import contracts


@pytest.mark.parametrize(
    "environment, threads",
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_dump_to=/tmp/x"}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"}, "64"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_force_host_platform_device_count=2"}, "16"),
        ({"JAX_NUM_CPU_DEVICES": "4"}, "32"),
        ({"JAX_NUM_CPU_DEVICES": "512"}, "256"),
        ({"JAX_NUM_CPU_DEVICES": "8", "PJRT_NPROC": "3"}, "3"),
    ],
)
def test_threads_go_with_the_devices_unless_the_user_has_chosen(environment, threads):
    set_thread_count(environment)
    assert environment.get("PJRT_NPROC") == threads


@pytest.mark.slow
def test_collectives_over_several_axes_at_once_do_not_run_out_of_threads():
    # With one thread per device, XLA aborts within these steps (3 of 3 trials).
    case = contracts.Case(contracts.Part("task", "contrastive"), positives="label", patch=2, heads=4)
    batch = contracts.make_batch(case.specs)
    mesh = contracts.MESHES["data=2 x sequence=2 x tensor=2"]
    contracts.assert_close(case.gradients_on(batch, mesh, times=300), case.gradients(batch))

"""Topologies: devices of a pod that this machine does not have."""

from __future__ import annotations

import importlib.util

import pytest

from mmjax.errors import UserError
from mmjax.planning import topology_devices


@pytest.mark.parametrize(
    ("name", "slices", "count", "kind"),
    [
        ("v4:2x2x2", 1, 8, "TPU v4"),
        ("v5e:1x1", 1, 1, "TPU v5 lite"),
        ("v5e:16x16", 1, 256, "TPU v5 lite"),
        ("v5p:8x16x16", 1, 2048, "TPU v5"),
        ("v6e:16x16", 8, 2048, "TPU v6 lite"),
        ("tpu7x:2x2x1", 1, 8, "TPU7x"),
    ],
)
def test_a_topology_has_its_chips(name, slices, count, kind):
    devices = topology_devices(name, slices)
    assert len(devices) == count and {device.device_kind for device in devices} == {kind}
    if slices > 1:
        assert sorted({device.slice_index for device in devices}) == list(range(slices))


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v9:4x4", 1, "unknown chip generation 'v9'; known are v4, v5e"),
        ("v5e", 1, "'v5e' has no shape; write it like v5e:4x4"),
        ("v5e:0x4", 1, "'v5e:0x4' has no shape"),
        ("v5p:4x4", 1, "does not have 3 dimensions; write it like v5p:4x4x4"),
        ("v6e:32x16", 1, "512 chips, more than the largest slice; give a slice of at most 256 chips, and more"),
        ("v5e:4x4", 0, "0 is less than one slice"),
        ("v5e:3x7", 1, "libtpu rejects 'v5e:3x7'"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_in_one_line(name, slices, message):
    with pytest.raises(UserError) as error:
        topology_devices(name, slices)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_libtpu_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[tpu\]"):
        topology_devices("v5e:4x4")

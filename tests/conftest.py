"""Fixtures that several test files share."""

from __future__ import annotations

import os
import pathlib

import pytest

# Eight simulated devices; set before JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory, worker_id) -> pathlib.Path:
    """A cache folder for `Digits`, which prepares into it once for all of pytest's workers."""
    configured = os.environ.get("MMJAX_CACHE")
    if configured:
        return pathlib.Path(configured)
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "mmjax-cache"

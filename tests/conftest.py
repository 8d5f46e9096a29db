"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import os
import pathlib
import subprocess
import sys
from importlib import metadata

import pytest
from xdist.scheduler import LoadFileScheduling

from mmjax.host.simulated_devices import set_thread_count
from tests.digit_files import write_images, write_recordings

# Compiling takes most of the time of the tests. The first halves it, and the second, which newer versions do not know,
# halves it twice again; neither changes anything that is tested.
QUICK_FLAGS = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    QUICK_FLAGS += " --xla_cpu_use_fusion_emitters=false"

# Eight simulated devices; set before JAX starts. On a GPU, unoptimised code would be too slow.
if not os.environ.get("JAX_PLATFORMS", "").startswith(("cuda", "gpu")):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK_FLAGS}"
    )
set_thread_count(os.environ)


class ByPart(LoadFileScheduling):
    """A worker takes a file as a whole, or one part of the contract suite, which together take minutes.

    So what the tests of a file or a part share is compiled once. (`--dist loadgroup` would be xdist's own way, but its
    groups are lost since pytest 9.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("[")[2] if "/test_contracts.py::" in nodeid else super()._split_scope(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last comes what is cut into small portions, so that the workers end at about the same time.
    items.sort(key=lambda item: item.path.name == "test_contracts.py")


def pytest_xdist_make_scheduler(config, log):
    return ByPart(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory, worker_id) -> pathlib.Path:
    """A cache folder for `Digits`, which prepares into it once for all of pytest's workers."""
    configured = os.environ.get("MMJAX_CACHE")
    if configured:
        return pathlib.Path(configured)
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "mmjax-cache"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, worker_id):
    """JAX's compilation cache for all of pytest's workers: recipes of one size share their programs."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    base = tmp_path_factory.getbasetemp()
    settings = {
        "jax_compilation_cache_dir": str((base if worker_id == "master" else base.parent) / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture
def digits_folder(monkeypatch, place, digits_cache) -> pathlib.Path:
    """The folder `place` of a module as the current one, with small raw digits for the datasets that need them."""
    if not (place / "raw").exists():
        write_images(place / "raw", 12)
        write_recordings(place / "raw" / "recordings", ["george", "jackson", "lucas", "yweweler"])
    monkeypatch.chdir(place)
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    monkeypatch.setenv("MMJAX_DATA", str(place / "raw"))
    return place


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, worker_id, digits_cache) -> pathlib.Path:
    """The workdir of a run of `tests/matched_recipe.py`, trained once for all of pytest's workers. Only to be read."""
    base = tmp_path_factory.getbasetemp()
    workdir = (base if worker_id == "master" else base.parent) / "trained-run"
    with open(f"{workdir}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "result.json").exists():
            tests = pathlib.Path(__file__).parent
            command = [sys.executable, "-m", "mmjax", "train", f"--config={tests / 'matched_recipe.py'}"]
            # One device, which is quicker; who reads the run has eight.
            environment = {**os.environ, "MMJAX_CACHE": str(digits_cache), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
            subprocess.run([*command, f"--workdir={workdir}"], check=True, cwd=tests.parent, env=environment)
    return workdir

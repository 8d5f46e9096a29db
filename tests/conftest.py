"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
from importlib import metadata

import pytest
from xdist.scheduler import LoadFileScheduling

from mmjax.host.simulated_devices import set_thread_count
from tests.digit_files import write_images, write_recordings

# Compilation dominates the run time of the tests. The first flag halves it, and the second, which newer versions lack,
# halves it twice more; neither changes a tested property.
QUICK_FLAGS = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    QUICK_FLAGS += " --xla_cpu_use_fusion_emitters=false"

# Simulate eight devices; this must precede JAX's start. On a GPU, unoptimised code would be too slow.
if not os.environ.get("JAX_PLATFORMS", "").startswith(("cuda", "gpu")):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK_FLAGS}"
    )
set_thread_count(os.environ)

# A shell ignores SIGINT in commands that it starts in the background, and programs started by the tests would, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class ByPart(LoadFileScheduling):
    """Distributes whole files to workers, but the contract suite, which takes minutes, part by part.

    Tests of one file or part share compiled programs. (`--dist loadgroup` is xdist's own mechanism, but pytest 9 drops
    its groups.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("[")[2] if "/test_contracts.py::" in nodeid else super()._split_scope(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Run the contract suite last: its small portions let the workers end at about the same time.
    items.sort(key=lambda item: item.path.name == "test_contracts.py")


def pytest_xdist_make_scheduler(config, log):
    return ByPart(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def digits_cache(tmp_path_factory, worker_id) -> pathlib.Path:
    """Cache folder for `Digits`, prepared once and shared by all pytest workers."""
    configured = os.environ.get("MMJAX_CACHE")
    if configured:
        return pathlib.Path(configured)
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "mmjax-cache"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, worker_id):
    """Shares JAX's compilation cache between pytest workers, so that recipes of equal sizes compile once."""
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
def digits_folder(monkeypatch, project, digits_cache) -> pathlib.Path:
    """The folder `project` of a module as the current one, with small raw digits for the datasets that need them."""
    if not (project / "raw").exists():
        write_images(project / "raw", 12)
        write_recordings(project / "raw" / "recordings", ["george", "jackson", "lucas", "yweweler"])
    monkeypatch.chdir(project)
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    monkeypatch.setenv("MMJAX_DATA", str(project / "raw"))
    return project


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, worker_id, digits_cache) -> pathlib.Path:
    """Workdir of a run of `tests/matched_recipe.py`, trained once and shared by all pytest workers. Read-only."""
    base = tmp_path_factory.getbasetemp()
    workdir = (base if worker_id == "master" else base.parent) / "trained-run"
    with open(f"{workdir}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "result.json").exists():
            tests = pathlib.Path(__file__).parent
            command = [sys.executable, "-m", "mmjax", "train", f"--config={tests / 'matched_recipe.py'}"]
            # Train on one device, which is faster; the tests read the run with eight.
            environment = {**os.environ, "MMJAX_CACHE": str(digits_cache), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
            subprocess.run([*command, f"--workdir={workdir}"], check=True, cwd=tests.parent, env=environment)
    return workdir

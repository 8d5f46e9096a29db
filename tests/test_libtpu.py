"""libtpu as a compiler on machines without a TPU."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from mmjax.host import libtpu

ROOT = pathlib.Path(__file__).parents[1]


def test_libtpu_is_a_compiler_only_where_nothing_speaks_of_a_tpu(tmp_path, monkeypatch):
    monkeypatch.setattr(libtpu, "has_tpu", lambda: False)
    assert not libtpu.expects_tpu({"JAX_PLATFORMS": "cpu"}) and not libtpu.expects_tpu({})
    assert libtpu.expects_tpu({"JAX_PLATFORMS": "tpu,cpu"}) and libtpu.expects_tpu({"TPU_WORKER_ID": "0"})
    environment = {"TPU_MIN_LOG_LEVEL": "0"}
    libtpu.use_as_compiler(environment)
    assert environment["TPU_MIN_LOG_LEVEL"] == "0" and environment["TPU_SKIP_MDS_QUERY"] == "1"
    monkeypatch.undo()
    assert not libtpu.has_tpu(tmp_path)
    (tmp_path / "accel0").touch()
    assert libtpu.has_tpu(tmp_path)


def test_a_command_prints_nothing_of_libtpu_where_there_is_no_tpu():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_PLATFORMS"))}
    command = [sys.executable, "-m", "mmjax", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""

"""Checksums detect damaged checkpoints; a message names them, and the newest intact one is restored."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.errors import UserError
from mmjax.host.quiet import quiet_libraries
from mmjax.training import checksums
from mmjax.training.checkpoint import CheckpointConfig, Checkpoints

DRAWS = np.random.default_rng(0)
STEPS = (2, 4, 6)


def make_state(step: int) -> dict:
    # Random bits are incompressible, so a flipped bit of the file is a flipped bit of an array.
    draws = np.random.default_rng(step)
    return {"w": jnp.asarray(draws.normal(size=(64, 128)), jnp.float32), "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=3, best="loss", mode="min"))
    for step in STEPS:
        checkpoints.save(step, make_state(step), {"loss": abs(step - 3.5)})
    checkpoints.wait()
    checkpoints.close()
    return folder


def largest_file(checkpoint: pathlib.Path) -> pathlib.Path:
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(checkpoint: pathlib.Path) -> None:
    path = largest_file(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def empty(checkpoint: pathlib.Path) -> None:
    for child in checkpoint.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()


DAMAGES = {
    "bit": flip_a_bit,
    "emptied": empty,
    "arrays lost": lambda checkpoint: shutil.rmtree(checkpoint / "default"),
    "file cut": lambda checkpoint: os.truncate(largest_file(checkpoint), 100),
    "structure emptied": lambda checkpoint: os.truncate(checkpoint / "default" / "_METADATA", 0),
    "metadata cut": lambda checkpoint: os.truncate(checkpoint / "_CHECKPOINT_METADATA", 20),
    "metadata lost": lambda checkpoint: (checkpoint / "_CHECKPOINT_METADATA").unlink(),
    "metrics cut": lambda checkpoint: os.truncate(checkpoint / "metrics" / "metrics", 3),
    "metrics changed": lambda checkpoint: (checkpoint / "metrics" / "metrics").write_text('{"loss": 0.25}'),
    "older copy of an array": lambda checkpoint: (
        shutil.rmtree(checkpoint / "default"),
        shutil.copytree(checkpoint.parent / "2" / "default", checkpoint / "default"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_can_be_saved_again(saved, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    DAMAGES[damage](workdir / "checkpoints" / "6")
    messages: list[str] = []
    checkpoints = Checkpoints(workdir, CheckpointConfig(keep=3, best="loss", mode="min"))
    state, step = checkpoints.restore_newest(make_state(0), messages.append)
    assert step == 4 and int(state["step"]) == 4
    assert np.array_equal(state["w"], make_state(4)["w"])
    (message,) = messages
    assert "checkpoint 6" in message and "using checkpoint 4 instead" in message and "\n" not in message
    assert (workdir / "checkpoints" / "6.damaged").is_dir()
    checkpoints.save(6, make_state(6), {"loss": 1.0})
    checkpoints.wait()
    restored, step = checkpoints.restore_newest(make_state(0), messages.append)
    assert step == 6 and np.array_equal(restored["w"], make_state(6)["w"])
    checkpoints.close()


@pytest.mark.parametrize("damage", ["bit", "emptied", "metrics cut"])
def test_reading_leaves_a_damaged_checkpoint_in_its_place(saved, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    DAMAGES[damage](workdir / "checkpoints" / "4")
    messages: list[str] = []
    checkpoints = Checkpoints(workdir, CheckpointConfig(best="loss", mode="min"), read_only=True)
    state, step = checkpoints.restore_newest(make_state(0), messages.append, best=True)
    checkpoints.close()
    # Checkpoint 4 has the lowest loss. Without its metrics, 2 has; with damaged arrays, the newest is restored.
    assert step == int(state["step"]) == (6 if damage == "bit" else 2)
    assert (workdir / "checkpoints" / "4").is_dir() and not list(workdir.rglob("*.damaged"))


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(saved, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    for step in STEPS:
        flip_a_bit(workdir / "checkpoints" / str(step))
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    with pytest.raises(UserError, match=r"checkpoint 6 .*checkpoint 4 .*checkpoint 2 "):
        checkpoints.restore_newest(make_state(0), print)
    checkpoints.close()
    assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["2", "4", "6"]


def test_a_file_in_the_place_of_the_checkpoints_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        Checkpoints(tmp_path, CheckpointConfig())


def test_the_command_drops_only_the_tracebacks_of_late_callbacks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    quiet_libraries()

    class Late:
        def __init__(self, message: str):
            self.message = message

        def __del__(self):
            raise RuntimeError(self.message)

    for message in ("Event loop is closed", "another problem"):
        Late(message)
    printed = capsys.readouterr().err
    assert "RuntimeError: another problem" in printed and "Event loop" not in printed


def fmix(words: np.ndarray) -> np.ndarray:
    """Finaliser of MurmurHash3 in Python integers."""
    mixed = []
    for word in map(int, words):
        word ^= word >> 16
        word = word * 0x85EBCA6B % 2**32
        word ^= word >> 13
        word = word * 0xC2B2AE35 % 2**32
        mixed.append(word ^ word >> 16)
    return np.array(mixed, np.uint64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "int8", "int4", "float8_e4m3fn"])
def test_a_checksum_is_the_sum_of_the_hashes_of_all_elements(dtype):
    array = jnp.asarray(DRAWS.normal(size=(3, 5, 16)) * 4).astype(dtype)
    raw = np.asarray(array)
    bits = (
        raw.astype(np.int32) if dtype == "int4" else raw.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[raw.itemsize])
    )
    words = bits.reshape(-1).astype(np.int64) % 2**32
    keys = (np.arange(words.size) * 0x9E3779B1 + 1) % 2**32
    truth = int(fmix(words ^ keys).sum() % 2**32)
    assert int(checksums._host_sum(array)) == truth
    assert int(checksums._device_sum(array)) == truth


def test_a_checksum_does_not_depend_on_the_sharding_and_sees_every_bit():
    array = jnp.asarray(DRAWS.normal(size=(8, 24)), jnp.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    truth = int(checksums._host_sum(array))
    for spec in (PartitionSpec("a", "b"), PartitionSpec(None, ("b", "a")), PartitionSpec()):
        assert int(checksums._device_sum(jax.device_put(array, NamedSharding(mesh, spec)))) == truth
    raw = np.asarray(array)
    for bit in range(32):
        changed = raw.copy()
        changed.view(np.uint32)[bit % 8, bit % 24] ^= np.uint32(1 << bit)
        assert int(checksums._host_sum(jnp.asarray(changed))) != truth
    assert int(checksums._host_sum(array[::-1])) != truth

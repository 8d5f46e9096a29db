"""Tests on a GPU: `pytest -m gpu`, or launch/check_gpu.sh on a bare machine."""

from __future__ import annotations

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from configs import digits, siglip_b16
from mmjax.experiment import plain
from mmjax.layers.attention.kernels import KERNELS
from mmjax.runs.run import train
from mmjax.runs.shrink import shrink
from mmjax.training.checkpoint import CheckpointHook
from tests import attention_truth, small_recipe
from tests.contracts import Case, Part, assert_close, assert_identical, make_batch

pytestmark = pytest.mark.gpu
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
PARTS = [Part("fusion", "cross_attention"), Part("task", "contrastive"), Part("encoder", "spectrogram_resnet")]
MICROBATCH_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
"""Tolerance relative to each leaf's largest gradient."""


@pytest.fixture(autouse=True)
def card():
    if jax.default_backend() != "gpu":
        pytest.skip(f"needs a GPU: JAX's platform here is {jax.default_backend()}")
    if DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        pytest.skip(f"needs {DETERMINISTIC} in XLA_FLAGS; run launch/check_gpu.sh")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", attention_truth.SHAPES)
@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if kernel.platform in ("", "gpu")])
def test_kernels_compute_the_definition(name, shape, dtype):
    query, key, _ = attention_truth.parts(attention_truth.SHAPES[shape], dtype)[0]
    if reason := KERNELS[name].unsupported(query, key):
        pytest.skip(f"{name}: {reason}")
    attention_truth.check(KERNELS[name].compute, attention_truth.SHAPES[shape], dtype)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_absence_changes_nothing_and_microbatches_give_what_the_whole_batch_gives(part, precision):
    case = Case(part, precision=precision)
    batch, absurd = make_batch(case.specs), make_batch(case.specs, garbage=True)
    whole = case.gradients(batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
    assert_identical(case.gradients(absurd), whole)
    estimator = {"kind": "accumulated", "microbatches": 4}
    accumulated = Case(part, precision=precision, estimator=estimator, parameters=case.parameters).gradients(batch)
    assert_close(accumulated, whole, MICROBATCH_TOLERANCE[precision])


def run(recipe, workdir) -> list[dict]:
    """Trains, and returns the metrics rows of the training split."""
    train(recipe, workdir, Console(quiet=True))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


def test_padded_text_in_bfloat16_trains_with_the_fused_kernel_as_with_the_reference(tmp_path):
    losses = {}
    for kernel in ("auto", "xla"):
        recipe = shrink(plain(siglip_b16.get_config()))
        recipe["mesh"]["attention"] = kernel
        rows = run(recipe, tmp_path / kernel)
        assert all(row["optimizer/skipped"] == 0 for row in rows)
        losses[kernel] = [row["image_text/loss"] for row in rows]
    assert np.isfinite(losses["xla"]).all()
    np.testing.assert_allclose(losses["auto"], losses["xla"], rtol=1e-2)


def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(tmp_path, monkeypatch):
    recipe = plain(small_recipe.get_config())
    recipe["train"]["steps"], recipe["checkpoint"]["every"], recipe["evaluate"] = 12, 4, {"every": 0, "splits": []}
    undisturbed = train(recipe, tmp_path / "undisturbed", Console(quiet=True))
    after_step = CheckpointHook.after_step

    def fail_at_step_6(self, loop):
        after_step(self, loop)
        if loop.step == 6:
            raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHook, "after_step", fail_at_step_6)
        with pytest.raises(RuntimeError, match="interrupted"):
            train(recipe, tmp_path / "resumed", Console(quiet=True))
    resumed = train(recipe, tmp_path / "resumed", Console(quiet=True))
    assert resumed["parameters_hash"] == undisturbed["parameters_hash"]
    again = train(recipe, tmp_path / "again", Console(quiet=True))
    assert again["parameters_hash"] == undisturbed["parameters_hash"]


def test_digits_are_learned_to_the_end(tmp_path):
    recipe = plain(digits.get_config("matched"))
    recipe["evaluate"] = {"every": 0, "splits": ["test"], "subsets": False, "batch_size": 256}
    result = train(recipe, tmp_path / "run", Console(quiet=True))
    assert result["steps"] == recipe["train"]["steps"] and math.isfinite(result["test"]["digit/loss"])
    assert result["test"]["digit/accuracy"] > 0.95


def test_products_at_the_highest_precision_are_those_of_float32_and_not_of_tf32():
    draws = np.random.default_rng(0).normal(size=(2, 256, 256))
    with jax.default_matmul_precision("highest"):
        found = jnp.asarray(draws[0], jnp.float32) @ jnp.asarray(draws[1], jnp.float32)
    np.testing.assert_allclose(found, draws[0] @ draws[1], atol=2e-4)

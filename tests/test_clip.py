"""CLIP: the recipe has the paper's sizes, and the benchmark runs it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from mmjax.errors import UserError
from mmjax.experiment import Experiment
from mmjax.planning import step_flops
from mmjax.recipe import load_recipe

ROOT = pathlib.Path(__file__).parents[1]
BATCH = 32

# `CLIPConfig()` of transformers 5.23, which is openai/clip-vit-base-patch32.
PARAMETERS_OF_CLIP = 151_277_313


@pytest.fixture(scope="module")
def experiment():
    recipe = load_recipe(str(ROOT / "configs" / "clip_b32.py"))
    recipe.train.batch_size = BATCH
    return Experiment(recipe, jax.devices()[:1])


def test_parameters_match_clip_except_for_documented_differences(experiment):
    found = sum(leaf.size for leaf in jax.tree.leaves(experiment.shapes.parameters))
    positions, key_biases = 50 * 768 + 77 * 512, 12 * 768 + 12 * 512
    norm_before_the_blocks, patch_bias = 2 * 768, 768
    assert found == PARAMETERS_OF_CLIP - positions - key_biases - norm_before_the_blocks + patch_bias


def test_the_flops_of_a_step_are_those_on_paper(experiment):
    def tower(tokens, width):
        # Four projections; two MLP matrices of hidden size 4 x width; attention logits and weighted values.
        return BATCH * 12 * 2 * tokens * (4 * width**2 + 8 * width**2 + 2 * tokens * width)

    patches = BATCH * 2 * 49 * 32 * 32 * 3 * 768
    maps = BATCH * 2 * (768 + 512) * 512
    forward = patches + tower(50, 768) + tower(77, 512) + maps
    found = step_flops(experiment)
    # Loss and recall each trace the matrix of all pairs; XLA merges the two.
    products, rest = divmod(found - 3 * forward, 3 * 2 * BATCH * BATCH * 512)
    assert 1 <= products <= 4 and rest == 0


def test_one_pooling_too_many_is_one_line():
    recipe = load_recipe(str(ROOT / "configs" / "clip_b32.py"))
    recipe.tasks.image_text.pooling = ["first", "last", "mean"]
    with pytest.raises(UserError, match="tasks.image_text.*give one, or one per side"):
        Experiment(recipe, jax.devices()[:1])


def benchmark(*flags):
    # One device and default XLA flags, as in a user's environment.
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "clip.py", *flags],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_benchmark_runs_without_peers_and_says_how_to_install_them(tmp_path):
    file = tmp_path / "clip.json"
    done = benchmark(
        "--size=tiny", "--batch_size=4", "--precisions=float32", "--turns=1", "--steps=3", "--cores=1",
        "--contenders=mmjax,big_vision", f"--json={file}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "big_vision missing: git clone" in done.stdout and "1.00 (1.00–1.00)" in done.stdout
    found = json.loads(file.read_text())
    ours = found["runs"][0]
    assert len(ours["wall"]) == len(ours["cpu"]) == found["steps"] == 3
    assert ours["flops"] > 0 and ours["peak_bytes"] > 2**27 and found["runs"][1]["missing"]


def test_an_unknown_contender_is_one_line():
    done = benchmark("--contenders=torhc")
    assert done.returncode == 2 and "did you mean 'torch'?" in done.stderr and "Traceback" not in done.stderr

"""Synthetic data: sizes from the recipe, deterministic, and trainable."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmjax.config import build
from mmjax.datasets import Synthetic
from mmjax.errors import UserError
from mmjax.experiment import Experiment
from mmjax.modalities import Text
from tests.test_plan import small_recipe


def dataset(**options) -> Synthetic:
    return Synthetic(build(Synthetic.Config, options, "data"))


def test_records_have_the_sizes_asked_for_and_are_the_same_each_time():
    data = dataset(image=[20, 30, 1], letters=7, recording=0.5, classes=3, examples=5)
    first, again = data.source("train"), data.source("train")
    assert len(first) == 5
    record = first[3]
    samples, rate = record.inputs["audio"]
    assert record.inputs["image"].shape == (20, 30, 1) and len(record.inputs["text"]) == 7
    assert len(samples) == 0.5 * rate and record.targets["label"] == 0
    np.testing.assert_array_equal(record.inputs["image"], again[3].inputs["image"])
    assert record.inputs["text"] != data.source("test")[3].inputs["text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image": [8, 8]}, "is not an image size"), ({"classes": 1}, "out of range"), ({"letters": -1}, "out of range")],
)
def test_sizes_that_make_no_data_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        dataset(**options)


def test_a_recipe_on_synthetic_data_trains():
    experiment = Experiment(small_recipe(data=8))
    state, step = experiment.init_state(), experiment.compile_step()
    batches = experiment.train_batches(0)
    state = step(state, next(batches))
    batches.close()
    assert int(state.step) == 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.parameters))


def test_a_vocabulary_may_be_larger_than_the_tokenizers_but_not_smaller():
    text = Text(build(Text.Config, {"vocabulary": 32_000}, "data.inputs.text"))
    assert text.spec.details == {"vocabulary": 32_000, "begin": 256, "end": 257}
    assert text.process("a")[0][1] == 257
    with pytest.raises(
        UserError, match="257 is too small for the tokenizer's 256 tokens plus begin and end; give at least 258"
    ):
        Text(build(Text.Config, {"vocabulary": 257}, "data.inputs.text"))

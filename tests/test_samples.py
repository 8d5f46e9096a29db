"""The sample files of README are the ones that their script writes, and README uses them literally."""

from __future__ import annotations

import importlib.util
import pathlib
import re

import numpy as np
import PIL.Image
import pytest
import scipy.io.wavfile

from mmjax.datasets.digits.digits_builder import plan_examples

ROOT = pathlib.Path(__file__).parents[1]
SAMPLES = ROOT / "docs" / "samples"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_samples", SAMPLES / "make_samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_predicts_from_files_of_the_clone():
    given = re.findall(r"--(?:image|audio)=(\S+)", (ROOT / "README.md").read_text())
    assert len(given) == 3 and all((ROOT / path).is_file() for path in given)


def test_the_picture_is_a_five_that_training_does_not_see(script):
    with PIL.Image.open(SAMPLES / "five.png") as image:
        assert image.mode == "L" and image.size == (8, 8)
        np.testing.assert_array_equal(np.asarray(image), script.picture(5))
    fives = [each for each in plan_examples("matched", "test") if each.targets["digit"] == "5"]
    trained = {each.image_index for task in ("matched", "arithmetic") for each in plan_examples(task, "train")}
    assert fives[0].image_index not in trained


def test_the_recording_is_what_the_script_synthesises(script):
    rate, samples = scipy.io.wavfile.read(SAMPLES / "three.wav")
    assert rate == 16_000 and samples.dtype == np.int16 and samples.ndim == 1
    np.testing.assert_array_equal(samples, script.recording("three"))

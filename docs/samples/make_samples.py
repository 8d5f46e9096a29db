"""Writes the sample files of README: a handwritten five and a spoken three, both absent from the training split.

python docs/samples/make_samples.py
"""

from __future__ import annotations

import pathlib

import numpy as np
import PIL.Image
import scipy.io.wavfile
import sklearn.datasets

from mmjax.datasets.digits import speech
from mmjax.datasets.digits.digits_builder import plan_examples
from mmjax.datasets.digits.voices import VOICES

FOLDER = pathlib.Path(__file__).parent


def picture(digit: int) -> np.ndarray:
    """Returns the first image of a digit in the test split, uint8 [8, 8]."""
    example = next(each for each in plan_examples("matched", "test") if each.targets["digit"] == str(digit))
    pixels = sklearn.datasets.load_digits().images[example.image_index]
    return np.rint(pixels * (255 / 16)).astype(np.uint8)


def recording(word: str) -> np.ndarray:
    """Speaks a word with a voice of the test split, int16 [n] at `speech.RATE` Hz."""
    (samples,) = speech.synthesise([speech.Utterance(word, f"en-us+{VOICES['test'][0]}")])
    return samples


def main() -> None:
    """Writes both files beside this script."""
    PIL.Image.fromarray(picture(5)).save(FOLDER / "five.png")
    scipy.io.wavfile.write(FOLDER / "three.wav", speech.RATE, recording("three"))


if __name__ == "__main__":
    main()

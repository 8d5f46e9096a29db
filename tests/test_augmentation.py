"""Augmentation: what it changes, what it leaves, and that a batch stays a function of seed and data step."""

import numpy as np
import pytest
from scipy import ndimage

from mmjax.data.digits import Digits
from mmjax.data.pipeline import Pipeline, fingerprint
from mmjax.modalities import MODALITIES
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.modalities.augmentation.affine import Affine
from mmjax.modalities.augmentation.equalise import Equalise
from mmjax.modalities.augmentation.noise import Noise
from mmjax.modalities.augmentation.shift import Shift
from mmjax.modalities.augmentation.speed import Speed

RATE = 8000


class Fixed:
    """Draws that always come out as one end of their range, so that a change has a closed form."""

    def __init__(self, end: float):
        self.end = end

    def normal(self, mean, deviation, size):
        return mean + deviation * np.linspace(-1.0, 1.0, size)

    def uniform(self, low, high, size=None):
        value = low + (high - low) * self.end
        return value if size is None else np.full(size, value)


def draws(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def blob(height=24, width=30):
    rows, columns = np.mgrid[:height, :width]
    picture = 250 * np.exp(-((rows - 10) ** 2 / 18 + (columns - 17) ** 2 / 40))
    return np.rint(picture).astype(np.uint8)


def tone(frequency=440.0, seconds=0.5):
    return (10_000 * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)).astype(np.int16)


def test_an_affine_map_without_bounds_is_the_identity():
    still = Affine(Affine.Config(rotate=0, shear=0, scale=0, shift=0))
    for shape in [(24, 30), (24, 30, 1), (24, 30, 3)]:
        raw = np.broadcast_to(blob().reshape(24, 30, *(1,) * (len(shape) - 2)), shape)
        np.testing.assert_array_equal(still(np.ascontiguousarray(raw), draws()), raw)


@pytest.mark.parametrize("bounds", [{"rotate": 20.0}, {"shear": 0.3}, {"scale": 0.2}, {"shift": 0.1}])
def test_an_affine_map_moves_pixels_where_scipy_moves_them(bounds):
    raw = blob()
    found = Affine(Affine.Config(**{"rotate": 0, "shear": 0, "scale": 0, "shift": 0, **bounds}))(raw, Fixed(1.0))
    # In (row, column), from a place in the result to its place in the source.
    angle = np.deg2rad(bounds.get("rotate", 0))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, 0], [bounds.get("shear", 0), 1]])
    matrix = turn @ slant * np.exp(bounds.get("scale", 0))
    centre = (np.array(raw.shape) - 1) / 2
    offset = centre - matrix @ centre + np.array(raw.shape) * bounds.get("shift", 0)
    truth = ndimage.affine_transform(raw.astype(np.float64), matrix, offset, order=1)
    assert np.abs(found - truth)[3:-3, 3:-3].max() < 3
    assert np.abs(raw - truth)[3:-3, 3:-3].max() > 20


def test_noise_has_the_ratio_that_was_drawn():
    samples, rate = Noise(Noise.Config(low=12.0, high=12.0))((tone(seconds=4), RATE), draws())
    noise = samples - tone(seconds=4) / np.float32(32768)
    ratio = 10 * np.log10(np.mean((tone(seconds=4) / 32768) ** 2) / np.mean(noise.astype(np.float64) ** 2))
    assert rate == RATE and abs(ratio - 12) < 0.2


def test_a_shift_puts_silence_in_front_and_keeps_the_rest():
    samples, _ = Shift(Shift.Config(longest=0.25))((tone(), RATE), Fixed(0.5))
    assert not samples[: RATE // 8].any()
    np.testing.assert_array_equal(samples[RATE // 8 :], tone())


def test_speed_moves_the_pitch_by_its_factor():
    samples, _ = Speed(Speed.Config(change=0.2))((tone(440.0, 2.0), RATE), Fixed(1.0))
    assert abs(len(samples) - 2 * RATE / 1.2) <= 1
    loudest = np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))))
    assert abs(loudest * RATE / len(samples) - 1.2 * 440) < 1


def test_an_equaliser_makes_each_tone_louder_by_the_gain_at_its_frequency():
    equalise = Equalise(Equalise.Config(deviation=12.0, points=3))  # -12 dB at 0 Hz, 12 dB at the highest frequency
    middle = 700 * (np.sqrt(1 + RATE / 2 / 700) - 1)  # halfway on the mel scale
    for frequency, gain in [(middle, 0.0), (RATE / 2 - 1, 12.0), (700 * ((1 + middle / 700) ** 0.5 - 1), -6.0)]:
        raw = tone(frequency, 2.0)
        samples, rate = equalise((raw, RATE), Fixed(1.0))
        inner = slice(RATE // 2, -RATE // 2)
        found = np.linalg.norm(samples[inner]) / np.linalg.norm(raw[inner] / 32768)
        assert rate == RATE and len(samples) == len(raw) and abs(20 * np.log10(found) - gain) < 0.1


@pytest.mark.parametrize(
    ("modality", "kind"), [(modality, kind) for modality, table in AUGMENTATIONS.items() for kind in table]
)
def test_every_augmentation_is_repeatable_changes_its_input_and_gives_what_its_modality_reads(modality, kind):
    raw = {"image": blob(), "audio": (tone(), RATE)}[modality]
    cls = AUGMENTATIONS[modality][kind]
    augmentation, reader = cls(cls.Config()), MODALITIES[modality](MODALITIES[modality].Config())
    first, again, other = (reader.process(augmentation(raw, draws(seed)))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0 and np.abs(first - reader.process(raw)[0]).max() > 0


def test_augmented_batches_are_a_function_of_seed_and_data_step_and_evaluation_is_left_alone(digits_cache):
    image = MODALITIES["image"](MODALITIES["image"].Config(size=(8, 8), channels=1))
    digits = Digits(Digits.Config(task="matched", cache=str(digits_cache)))

    def pipeline(seed=0, **options):
        return Pipeline(digits, {"image": image}, seed=seed, **options)

    augment = {"image": [Affine(Affine.Config())]}
    augmented = pipeline(augment=augment)
    batch = augmented.batch_at("train", 16, 5)
    with augmented.train_batches("train", 16, start_step=4) as batches:
        next(batches)
        assert fingerprint(next(batches)) == fingerprint(batch)
    rows = augmented.batch_at("train", 16, 5, rows=[3, 11]).inputs["image"].values
    np.testing.assert_array_equal(rows, batch.inputs["image"].values[[3, 11]])
    assert np.abs(batch.inputs["image"].values - pipeline().batch_at("train", 16, 5).inputs["image"].values).max() > 0
    twice = pipeline(augment={"image": [*augment["image"], *augment["image"]]}).batch_at("train", 16, 5)
    assert np.abs(twice.inputs["image"].values - batch.inputs["image"].values).max() > 0

    def whole(split):
        return [
            [fingerprint(batch) for batch in made.evaluation_batches(split, 128)] for made in (augmented, pipeline())
        ]

    assert whole("validation")[0] == whole("validation")[1]

"""Augmentations against NumPy, SciPy and Pillow; augmented batches are a function of seed and data step."""

import collections
import colorsys
import pickle
from typing import ClassVar

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from scipy import ndimage

from mmjax.data.pipeline import Pipeline, fingerprint
from mmjax.datasets.digits.digits import Digits
from mmjax.errors import UserError
from mmjax.modalities import MODALITIES
from mmjax.modalities.augmentation import AUGMENTATIONS, rand_augment
from mmjax.modalities.augmentation.affine import Affine
from mmjax.modalities.augmentation.colour import Colour
from mmjax.modalities.augmentation.crop import Crop
from mmjax.modalities.augmentation.edit_words import EditWords
from mmjax.modalities.augmentation.equalise import Equalise
from mmjax.modalities.augmentation.erase import Erase
from mmjax.modalities.augmentation.flip import Flip
from mmjax.modalities.augmentation.noise import Noise
from mmjax.modalities.augmentation.paraphrase import Paraphrase
from mmjax.modalities.augmentation.rand_augment import RandAugment
from mmjax.modalities.augmentation.shift import Shift
from mmjax.modalities.augmentation.speed import Speed
from mmjax.modalities.augmentation.synonyms import Synonyms, read_synonyms

RATE = 8000


class Fixed:
    """Generator whose draws are always one end of their range, so that the result has a closed form."""

    def __init__(self, end: float):
        self.end = end

    def normal(self, mean, std, size):
        return mean + std * np.linspace(-1.0, 1.0, size)

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
    # In (row, column), from output coordinates to input coordinates.
    angle = np.deg2rad(bounds.get("rotate", 0))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, 0], [bounds.get("shear", 0), 1]])
    matrix = turn @ slant * np.exp(bounds.get("scale", 0))
    centre = (np.array(raw.shape) - 1) / 2
    offset = centre - matrix @ centre + np.array(raw.shape) * bounds.get("shift", 0)
    truth = ndimage.affine_transform(raw.astype(np.float64), matrix, offset, order=1)
    assert np.abs(found - truth)[3:-3, 3:-3].max() < 3
    assert np.abs(raw - truth)[3:-3, 3:-3].max() > 20


def test_noise_has_the_drawn_signal_to_noise_ratio():
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


@pytest.mark.parametrize("end", [0.0, 0.3, 1.0])
def test_speed_interpolates_between_neighbouring_samples(end):
    samples = np.random.default_rng(0).normal(size=200).astype(np.float32)
    found, rate = Speed(Speed.Config(change=0.2))((samples, RATE), Fixed(end))
    expected = np.interp(np.arange(0, 199, 0.8 + 0.4 * end), np.arange(200), samples)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert rate == RATE


def test_an_equaliser_makes_each_tone_louder_by_the_gain_at_its_frequency():
    equalise = Equalise(Equalise.Config(std=12.0, points=3))  # -12 dB at 0 Hz, 12 dB at the highest frequency
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
def test_every_augmentation_is_repeatable_changes_its_input_and_suits_its_modality(modality, kind, tmp_path):
    (tmp_path / "words.json").write_text('{"quick": ["fast"], "lazy": ["idle"]}')
    needed = {
        "synonyms": {"path": str(tmp_path / "words.json"), "rate": 0.5},
        "paraphrase": {"function": f"{__name__}:in_other_words"},
    }.get(kind, {})
    raw = {
        "image": blob(),
        "audio": (tone(), RATE),
        "text": "the quick brown fox jumps over the lazy dog",
        "series": np.sin(np.arange(50.0)),
        "video": (np.stack([np.roll(blob(), number, axis=1) for number in range(12)]), 4.0),
        "points": np.random.default_rng(0).normal(size=(50, 3)),
    }[modality]
    cls = AUGMENTATIONS[modality][kind]
    augmentation, reader = cls(cls.Config(**needed)), MODALITIES[modality](MODALITIES[modality].Config())
    found = []
    for seed in range(12):
        first, again = (reader.process(augmentation(raw, draws(seed)))[0] for _ in range(2))
        np.testing.assert_array_equal(first, again)
        found.append(first.tobytes())
    assert len(set(found)) > 1 and set(found) - {reader.process(raw)[0].tobytes()}


@pytest.mark.parametrize("kind", AUGMENTATIONS["image"])
def test_pictures_of_any_channels_stay_pictures_and_transparency_is_not_coloured(kind):
    draw = np.random.default_rng(1)
    cls = AUGMENTATIONS["image"][kind]
    for shape in [(20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 3), (20, 30, 4)]:
        raw = draw.integers(0, 256, shape, np.uint8)
        for seed in range(8):
            found = cls(cls.Config())(raw, draws(seed))
            assert found.dtype == np.uint8 and found.shape[2:] == raw.shape[2:]
            assert kind == "crop" or found.shape == raw.shape
            if kind in ("colour", "rand_augment") and shape[-1] in (2, 4):
                np.testing.assert_array_equal(found[..., -1], raw[..., -1])
            if kind == "erase" and shape[-1] in (2, 4):
                assert ((found[..., -1] == raw[..., -1]) | (found[..., -1] == 255)).all()


class TestCrop:
    def test_a_crop_is_a_window_of_the_image_within_its_bounds(self):
        raw = (np.arange(40 * 50).reshape(40, 50) % 251).astype(np.uint8)
        areas = []
        for seed in range(300):
            part = Crop(Crop.Config(smallest=0.2, aspect=1.5))(raw, draws(seed))
            windows = np.lib.stride_tricks.sliding_window_view(raw, part.shape)
            assert (windows == part).all((2, 3)).any()
            areas.append(part.size / raw.size)
            # Crop rounds side lengths to whole pixels.
            assert 1 / 1.65 < part.shape[0] / part.shape[1] * 50 / 40 < 1.65
        assert 0.18 < min(areas) < 0.25 and max(areas) > 0.9

    def test_the_whole_image_is_returned_if_no_crop_fits(self):
        raw = blob()
        np.testing.assert_array_equal(Crop(Crop.Config(smallest=1.0, aspect=1.0))(raw, draws()), raw)


@pytest.mark.parametrize(("horizontal", "vertical"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_flips_match_numpy(horizontal, vertical):
    found = Flip(Flip.Config(horizontal=horizontal, vertical=vertical))(blob(), draws())
    across = blob()[:, ::-1] if horizontal else blob()
    np.testing.assert_array_equal(found, across[::-1] if vertical else across)


class TestColour:
    RAW = np.random.default_rng(3).integers(60, 180, (8, 9, 3), np.uint8)
    STILL: ClassVar = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}

    def changed(self, end, **strengths):
        return Colour(Colour.Config(**{**self.STILL, **strengths}))(self.RAW, Fixed(end)).astype(int)

    @pytest.mark.parametrize("end", [0.0, 1.0])
    @pytest.mark.parametrize(
        ("name", "enhancer"),
        [
            ("brightness", PIL.ImageEnhance.Brightness),
            ("contrast", PIL.ImageEnhance.Contrast),
            ("saturation", PIL.ImageEnhance.Color),
        ],
    )
    def test_light_and_saturation_change_as_pillow_changes_them(self, end, name, enhancer):
        factor = 1.3 if end else 0.7
        truth = np.asarray(enhancer(PIL.Image.fromarray(self.RAW)).enhance(factor)).astype(int)
        # Pillow rounds intermediate results.
        assert np.abs(self.changed(end, **{name: 0.3}) - truth).max() <= 2

    def test_a_hue_is_an_angle_of_the_colour_wheel_of_yiq(self):
        found = self.changed(1.0, hue=0.2)
        for before, after in zip(self.RAW.reshape(-1, 3), found.reshape(-1, 3), strict=True):
            y, i, q = colorsys.rgb_to_yiq(*(before / 255))
            turned = (i + 1j * q) * np.exp(1j * np.pi * 0.2)
            y2, i2, q2 = colorsys.rgb_to_yiq(*(after / 255))
            assert abs(y - y2) < 0.01 and abs(turned - (i2 + 1j * q2)) < 0.02

    def test_colour_jitter_of_0_is_the_identity(self):
        np.testing.assert_array_equal(self.changed(1.0), self.RAW)


class TestErase:
    def test_one_rectangle_changes_within_its_bounds(self):
        raw = np.zeros((40, 60), np.uint8)
        for seed in range(100):
            erased = Erase(Erase.Config(probability=1.0, smallest=0.1, largest=0.2, aspect=2.0))(raw, draws(seed))
            rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            # Uniform noise is sometimes 0, also at an edge.
            assert 0.08 < box / raw.size < 0.22 and (erased > 0).sum() > 0.9 * box
        assert not raw.any(), "the augmentation modified its input"

    def test_erasing_has_its_probability(self):
        raw = np.zeros((10, 10), np.uint8)
        count = sum(Erase(Erase.Config(probability=0.3))(raw, draws(seed)).any() for seed in range(500))
        assert abs(count / 500 - 0.3) < 0.06


class TestRandAugment:
    def test_operations_are_drawn_uniformly_with_the_magnitude(self, monkeypatch):
        calls = collections.Counter()

        def recorder(name):
            def change(picture, strength):
                calls[name, round(strength, 3)] += 1
                return picture

            return change

        monkeypatch.setattr(rand_augment, "OPERATIONS", {name: recorder(name) for name in "abcd"})
        for seed in range(500):
            RandAugment(RandAugment.Config(count=2, magnitude=7.0))(blob(), draws(seed))
        assert sum(calls.values()) == 1000 and len(calls) == 8
        assert all(abs(count - 125) < 50 for count in calls.values()) and {abs(s) for _, s in calls} == {0.7}

    @pytest.mark.parametrize("name", sorted(set(rand_augment.OPERATIONS) - {"autocontrast", "equalize"}))
    def test_operations_at_strength_0_are_the_identity(self, name):
        picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8))
        np.testing.assert_array_equal(np.asarray(rand_augment.OPERATIONS[name](picture, 0.0)), np.asarray(picture))

    def test_translations_are_relative_to_the_image_size(self):
        raw = np.zeros((20, 20), np.uint8)
        raw[8:12, 8:12] = 200
        moved = np.asarray(rand_augment.OPERATIONS["translate_x"](PIL.Image.fromarray(raw), 0.5))
        np.testing.assert_array_equal(moved, np.roll(raw, -3, axis=1))


class TestEditWords:
    SENTENCE = " ".join(f"w{number}" for number in range(200))

    def edited(self, seed=0, **rates):
        return EditWords(EditWords.Config(**rates))(self.SENTENCE, draws(seed)).split()

    def test_deletion_has_its_rate_and_keeps_the_order(self):
        kept = self.edited(delete=0.3, swap=0.0)
        assert abs(len(kept) / 200 - 0.7) < 0.1
        numbers = [int(word[1:]) for word in kept]
        assert numbers == sorted(numbers)

    def test_swaps_move_words_by_one_place(self):
        moved = self.edited(delete=0.0, swap=0.3)
        places = [int(word[1:]) - place for place, word in enumerate(moved)]
        assert sorted(moved) == sorted(self.SENTENCE.split()) and set(places) == {-1, 0, 1}

    def test_at_least_one_word_remains(self):
        for seed in range(200):
            assert EditWords(EditWords.Config(delete=0.99, swap=0.5))("one two", draws(seed)).split()
        assert EditWords(EditWords.Config(delete=0.99))("one", draws()) == "one"


class TestSynonyms:
    # WordNet's format: offset, file, type, word count in hexadecimal, words with ids, pointers, gloss.
    NOUNS = (
        "  1 This is the licence of the database.\n"
        "00001740 03 n 03 car 0 auto 0 motor_vehicle 0 001 @ 00002137 n 0000 | a thing with wheels\n"
        "00002137 03 n 01 lonely 0 000 | no others\n"
    )
    ADJECTIVES = "00003000 00 a 02 abundant 0 galore(ip) 0 000 | more than enough\n"

    @pytest.fixture
    def wordnet(self, tmp_path):
        (tmp_path / "data.noun").write_text(self.NOUNS)
        (tmp_path / "data.adj").write_text(self.ADJECTIVES)
        return str(tmp_path)

    def test_words_of_a_wordnet_synset_are_synonyms(self, wordnet):
        assert read_synonyms(wordnet) == {
            "car": ("auto", "motor vehicle"),
            "auto": ("car", "motor vehicle"),
            "motor vehicle": ("auto", "car"),
            "abundant": ("galore",),
            "galore": ("abundant",),
        }

    def test_words_are_replaced_at_the_rate_and_all_else_stays(self, wordnet):
        replace = Synonyms(Synonyms.Config(path=wordnet, rate=0.4))
        found = [replace("Car, lonely-car!", draws(seed)) for seed in range(400)]
        assert {text.split(",")[0] for text in found} == {"Car", "Auto", "Motor vehicle"}
        assert all(", lonely-" in text and text.endswith("!") for text in found)
        assert abs(sum(text.startswith("Car") for text in found) / 400 - 0.6) < 0.08

    @pytest.mark.parametrize("content", [None, "[1]", "{", '{"a": 3}', '{"big": "large"}'])
    def test_files_without_synonyms_are_refused_in_one_line(self, tmp_path, content):
        path = tmp_path / "words.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(UserError, match=r"has no synonyms .*; give the folder of WordNet's"):
            Synonyms(Synonyms.Config(path=str(path))).open()


def in_other_words(text: str) -> list[str]:
    return [f"{text} indeed", f"so {text}", f"{text} as they say"]


def drawn_words(text: str, generator: np.random.Generator) -> str:
    return f"{text} {generator.integers(1000)}"


def no_words(text: str) -> list[str]:
    return []


def no_list(text: str) -> str:
    return text


def no_text(text: str, generator: np.random.Generator) -> int:
    return 3


class TestParaphrase:
    def made(self, name, rate=0.5):
        return Paraphrase(Paraphrase.Config(function=f"{__name__}:{name}", rate=rate))

    def test_candidates_are_drawn_uniformly_at_the_rate(self):
        counts = collections.Counter(self.made("in_other_words", 0.6)("a fox", draws(seed)) for seed in range(900))
        assert abs(counts.pop("a fox") - 360) < 60 and set(counts) == set(in_other_words("a fox"))
        assert all(abs(count - 180) < 45 for count in counts.values())

    def test_functions_with_a_generator_are_reproducible_across_processes(self):
        paraphrase = self.made("drawn_words", 0.99)
        paraphrase.open()
        copy = pickle.loads(pickle.dumps(paraphrase))
        found = [paraphrase("a fox", draws(seed)) for seed in range(20)]
        assert len(set(found)) > 10 and found == [copy("a fox", draws(seed)) for seed in range(20)]

    def test_texts_without_candidates_are_unchanged(self):
        assert self.made("no_words", 0.99)("a fox", draws()) == "a fox"

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            ("no.such.module:retell", r"cannot be imported \(ModuleNotFoundError.*; name a function of an import"),
            ("json:retell", r"cannot be imported \(AttributeError"),
            ("json:__name__", "is not a function but str; name"),
        ],
    )
    def test_functions_that_cannot_be_imported_are_refused_before_training(self, function, message):
        with pytest.raises(UserError, match=message):
            Paraphrase(Paraphrase.Config(function=function)).open()

    @pytest.mark.parametrize(("name", "wanted"), [("no_list", "a list of texts"), ("no_text", "a text")])
    def test_results_that_are_not_text_are_refused(self, name, wanted):
        with pytest.raises(UserError, match=f"let it return {wanted}"):
            self.made(name, 0.99)("a fox", draws())

    def test_a_name_without_a_colon_is_refused(self):
        with pytest.raises(ValueError, match="is not 'module:function'"):
            Paraphrase.Config(function="retell")


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


def test_noise_ignores_a_constant_offset():
    """The noise level is relative to the signal without its offset: noise 20 dB below, for any constant offset."""
    samples = 0.01 * np.sin(np.arange(16_000) / 5)
    noise = Noise(Noise.Config(low=20.0, high=20.0))
    for offset in (0.0, 0.5):
        found = noise(((samples + offset).astype(np.float32), 16_000), np.random.default_rng(0))[0] - offset - samples
        assert 20 * np.log10(samples.std() / found.std()) == pytest.approx(20, abs=0.1)

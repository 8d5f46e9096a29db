"""Modalities: raw data of any form becomes arrays of one shape; invalid data is refused in one line."""

from __future__ import annotations

import struct
import wave

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import sentencepiece
import tokenizers

from mmjax.config import build
from mmjax.errors import UserError
from mmjax.modalities import MODALITIES, Audio, Image, Text
from mmjax.modalities.image import border_colour

RAW = {
    "image": np.arange(64, dtype=np.uint8).reshape(8, 8),
    "audio": (np.arange(1000, dtype=np.int16), 8_000),
    "text": "a sentence",
    "table": {"age": 41, "colour": "red"},
    "series": np.arange(40.0),
    "video": (np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8), 2.0),
    "points": np.arange(60.0).reshape(20, 3) % 7,
}
NEEDED = {"table": {"columns": ["age", "colour"], "categories": {"colour": ["blue", "red"]}}}


def make(kind: str, **fields):
    fields = {**NEEDED.get(kind, {}), **fields}
    return MODALITIES[kind](build(MODALITIES[kind].Config, fields, kind))


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write_wav(path, samples: np.ndarray, rate: int, bits: int) -> None:
    """Writes float samples [n] or [n, channels] with the standard library, which mmjax does not read with."""
    scaled = np.rint(samples * (2 ** (bits - 1) - 1)).astype(np.int64)
    if bits == 8:
        scaled += 128
    data = b"".join(int(value).to_bytes(bits // 8, "little", signed=bits > 8) for value in scaled.ravel())
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(data)


@pytest.mark.parametrize("kind", MODALITIES)
def test_values_and_masks_have_the_shapes_of_the_spec(kind):
    modality = make(kind)
    spec = modality.spec
    values, mask = modality.process(RAW[kind])
    assert values.shape == spec.shape and values.dtype == spec.dtype
    assert mask.shape == spec.shape[: spec.mask_rank] and mask.dtype == bool
    assert mask.any()


@pytest.mark.parametrize("kind", MODALITIES)
def test_raw_data_of_another_kind_is_a_value_error(kind):
    for raw in (np.zeros((3, 3, 3, 3)), b"bytes", np.zeros((4, 4), np.float32)):
        if kind == "audio":
            raw = (np.asarray(raw), 16_000) if not isinstance(raw, np.ndarray) or raw.ndim != 2 else (raw[:0], 16_000)
        with pytest.raises(ValueError):
            make(kind).process(raw)


class TestImage:
    def test_values_are_scaled_by_mean_and_deviation(self):
        values, mask = make("image", size=(1, 2), channels=1, mean=(0.25,), std=(0.5,)).process(
            np.array([[0, 255]], np.uint8)
        )
        np.testing.assert_allclose(values[0, :, 0], [-0.5, 1.5])
        assert mask.shape == () and mask

    def test_each_channel_can_have_its_own_mean(self):
        values, _ = make("image", size=(1, 1), mean=(0.0, 0.5, 1.0), std=(1.0,)).process(np.full((1, 1), 255, np.uint8))
        np.testing.assert_allclose(values[0, 0], [1.0, 0.5, 0.0])

    @pytest.mark.parametrize("shape", [(8, 8), (20, 31), (20, 31, 1), (20, 31, 2), (7, 5, 3), (50, 50, 4)])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
    def test_a_flat_picture_of_any_form_stays_flat(self, shape, channels, fit):
        raw = np.full(shape, 255, np.uint8)
        values, _ = make("image", size=(16, 24), channels=channels, fit=fit, mean=(0.0,), std=(1.0,)).process(raw)
        np.testing.assert_allclose(values, 1.0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(20, 31, 3), (31, 20, 3), (7, 50, 3), (16, 24, 3), (40, 9, 3)])
    @pytest.mark.parametrize("fit", ["crop", "pad"])
    def test_fit_of_another_aspect_ratio_matches_pillow(self, shape, fit):
        raw = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        made, _ = make("image", size=(16, 24), fit=fit, mean=(0.0,), std=(1.0,)).process(raw)
        for channel in range(3):
            # A float image, so that Pillow does not round.
            plane = PIL.Image.fromarray(raw[..., channel].astype(np.float32))
            if fit == "crop":
                expected = PIL.ImageOps.fit(plane, (24, 16), PIL.Image.Resampling.BICUBIC)
            else:
                colour = border_colour(raw)[channel]
                expected = PIL.ImageOps.pad(plane, (24, 16), PIL.Image.Resampling.BICUBIC, color=colour)
            np.testing.assert_allclose(made[..., channel] * 255, np.asarray(expected).clip(0, 255), atol=2e-3)

    def test_a_picture_of_the_right_size_is_not_touched(self):
        raw = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
        values, _ = make("image", size=(8, 8), channels=1, mean=(0.0,), std=(1.0,)).process(raw)
        np.testing.assert_allclose(values[..., 0] * 255, raw, atol=1e-4)

    def test_dark_ink_on_white_becomes_light_on_black_and_light_on_black_stays(self):
        light = np.zeros((8, 8), np.uint8)
        light[2:6, 3:5] = 200
        modality = make("image", size=(8, 8), channels=1, background="dark")
        np.testing.assert_array_equal(modality.process(255 - light)[0], modality.process(light)[0])
        plain = make("image", size=(8, 8), channels=1)
        np.testing.assert_array_equal(modality.process(light)[0], plain.process(light)[0])

    def test_transparency_becomes_white(self):
        raw = np.zeros((4, 4, 4), np.uint8)
        values, _ = make("image", size=(4, 4), channels=3, mean=(0.0,), std=(1.0,)).process(raw)
        np.testing.assert_allclose(values, 1.0, atol=1e-6)

    def test_padding_keeps_the_aspect_ratio_and_the_background(self):
        raw = np.full((10, 30), 60, np.uint8)
        raw[2:8, 5:25] = 255
        values, _ = make("image", size=(30, 30), channels=1, fit="pad", mean=(0.0,), std=(1.0,)).process(raw)
        np.testing.assert_allclose(values[:9], 60 / 255)
        assert values[15, 15] == 1.0

    @pytest.mark.parametrize(
        ("suffix", "mode"),
        [
            (suffix, mode)
            for suffix, modes in {
                "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
                "jpg": ("1", "L", "RGB", "CMYK"),
                "webp": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
                "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
            }.items()
            for mode in modes
        ],
    )
    def test_files_of_all_common_forms_are_read(self, tmp_path, suffix, mode):
        grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))
        picture = PIL.Image.fromarray(grey).convert(mode)
        path = tmp_path / f"a.{suffix}"
        picture.save(path)
        modality = make("image", size=(16, 32), channels=1, mean=(0.0,), std=(1.0,))
        values, mask = modality.process(modality.read(str(path), "--image"))
        assert mask
        # In 1-bit images only the mean brightness survives dithering.
        compared = (values.mean(), grey.mean() / 255) if mode == "1" else (values[..., 0], grey / 255)
        np.testing.assert_allclose(*compared, atol=0.06)

    @pytest.mark.parametrize("suffix", ["png", "tiff"])
    def test_greyscale_of_more_bits_needs_the_range_that_the_model_was_trained_on(self, tmp_path, suffix):
        grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))
        path = tmp_path / f"a.{suffix}"
        PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(path)
        options = {"size": (16, 32), "channels": 1, "mean": (0.0,), "std": (1.0,)}
        with pytest.raises(UserError, match="more than 8 bits"):
            make("image", **options).read(str(path), "--image")
        modality = make("image", range=(0.0, 65535.0), **options)
        values, _ = modality.process(modality.read(str(path), "--image"))
        np.testing.assert_allclose(values[..., 0], grey / 255, atol=0.01)

    def test_photos_follow_their_exif_orientation(self, tmp_path):
        picture = PIL.Image.fromarray(np.zeros((10, 20, 3), np.uint8))
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / "a.jpg", exif=exif)
        assert make("image").read(str(tmp_path / "a.jpg"), "--image").shape[:2] == (20, 10)

    @pytest.mark.parametrize("damage", ["missing", "folder", "text", "empty", "cut", "cut png"])
    def test_an_unreadable_file_is_a_user_error_of_one_line(self, tmp_path, damage):
        path = tmp_path / "a.png"
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(path, format="JPEG" if damage == "cut" else "PNG")
        if damage == "missing":
            path.unlink()
        elif damage == "folder":
            path = tmp_path
        else:
            data = path.read_bytes()
            path.write_bytes({"text": b"hello", "empty": b""}.get(damage, data[: len(data) // 2]))
        with pytest.raises(UserError) as caught:
            make("image").read(str(path), "--image")
        assert str(caught.value).startswith("--image: ") and "\n" not in str(caught.value)

    @pytest.mark.parametrize("fields", [{"size": (8,)}, {"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"size": (0, 8)}])
    def test_an_invalid_config_is_a_user_error(self, fields):
        with pytest.raises(UserError):
            build(Image.Config, fields, "image")


class TestAudio:
    @pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
    @pytest.mark.parametrize("bits", [8, 16, 24, 32])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_wav_files_of_any_rate_and_depth_hold_the_same_tone(self, tmp_path, rate, bits, channels):
        samples = tone(rate)
        write_wav(tmp_path / "a.wav", samples if channels == 1 else np.stack([samples] * 2, axis=1), rate, bits)
        modality = make("audio", normalise="none")
        values, mask = modality.process(modality.read(str(tmp_path / "a.wav"), "--audio"))
        assert abs(int(mask.sum()) - 8_000) <= 1
        # The resampling filter rings at both ends.
        np.testing.assert_allclose(values[500:7500], tone(16_000)[500:7500], atol=0.02 if bits == 8 else 0.002)
        assert not values[~mask].any()

    def test_floating_point_wav_files_are_read(self, tmp_path):
        samples = tone(16_000).astype("<f4").tobytes()
        header = (
            b"RIFF"
            + struct.pack("<I", 36 + len(samples))
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
        )
        (tmp_path / "a.wav").write_bytes(header + b"data" + struct.pack("<I", len(samples)) + samples)
        modality = make("audio", normalise="none")
        values, _ = modality.process(modality.read(str(tmp_path / "a.wav"), "--audio"))
        np.testing.assert_allclose(values[:8000], tone(16_000), atol=1e-6)

    @pytest.mark.parametrize("damage", ["missing", "folder", "text", "empty", "header", "cut", "silent", "infinite"])
    def test_an_unreadable_file_is_a_user_error_of_one_line(self, tmp_path, damage):
        path = tmp_path / "a.wav"
        write_wav(path, tone(16_000), 16_000, 16)
        data = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "folder":
            path = tmp_path
        elif damage == "silent":
            write_wav(path, np.zeros(0), 16_000, 16)
        elif damage == "infinite":
            samples = np.full(10, np.inf, "<f4").tobytes()
            fields = struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
            path.write_bytes(
                b"RIFF" + struct.pack("<I", 76) + b"WAVEfmt " + fields + b"data" + struct.pack("<I", 40) + samples
            )
        else:
            path.write_bytes({"text": b"hello", "empty": b"", "header": data[:30], "cut": data[:-1000]}[damage])
        with pytest.raises(UserError) as caught:
            make("audio").read(str(path), "--audio")
        assert str(caught.value).startswith("--audio: ") and "\n" not in str(caught.value)

    def test_loudness_is_normalised_over_valid_samples(self):
        for gain in (0.01, 0.9):
            values, mask = make("audio", normalise="rms").process(((gain * tone(16_000)).astype(np.float32), 16_000))
            assert np.sqrt(np.mean(values[mask] ** 2)) == pytest.approx(0.1, rel=1e-4)
            values, mask = make("audio", normalise="peak").process(((gain * tone(16_000)).astype(np.float32), 16_000))
            assert np.abs(values).max() == pytest.approx(1.0, rel=1e-4)

    def test_silence_stays_silent_and_finite_and_is_present(self):
        for config in ({}, {"normalise": "peak"}, {"trim": 30.0}):
            values, mask = make("audio", **config).process((np.zeros(400, np.int16), 16_000))
            assert not values.any() and mask.sum() == 400

    def test_trimming_finds_the_word(self):
        silence = np.zeros(20_000)
        recording = np.concatenate([silence, tone(16_000), silence])
        values, mask = make("audio", trim=40.0, normalise="none").process((recording, 16_000))
        assert abs(int(mask.sum()) - 8_000) < 20
        np.testing.assert_allclose(values[1:7000], tone(16_000)[2:7001], atol=0.1)

    def test_a_long_recording_is_cut_as_if_it_had_been_resampled_whole(self):
        samples = np.random.default_rng(0).standard_normal(5 * 44_100) * 0.1
        short = make("audio", normalise="none").process((samples, 44_100))[0]
        long = make("audio", normalise="none", seconds=5.0).process((samples, 44_100))[0]
        np.testing.assert_array_equal(short, long[:16_000])

    def test_values_that_are_not_finite_are_refused(self):
        with pytest.raises(ValueError, match="finite"):
            make("audio").process((np.array([0.0, np.nan]), 16_000))


class TestText:
    def test_bytes_are_their_own_tokens_and_an_end_follows(self):
        modality = make("text", length=6)
        values, mask = modality.process("né")
        assert values.tolist() == [ord("n"), 0xC3, 0xA9, modality.end, 0, 0]
        assert mask.tolist() == [True] * 4 + [False] * 2
        assert modality.spec.details == {"vocabulary": 258, "begin": 256, "end": 257}

    def test_a_long_sentence_loses_its_tail_but_not_its_end(self):
        modality = make("text", length=4)
        values, mask = modality.process("abcdef")
        assert values.tolist() == [97, 98, 99, modality.end] and mask.all()

    def test_an_empty_sentence_is_present(self):
        values, mask = make("text").process("")
        assert mask.sum() == 1 and values[0] == 257

    def test_case_can_be_ignored(self):
        modality = make("text", lowercase=True)
        np.testing.assert_array_equal(modality.process("WHAT?")[0], modality.process("what?")[0])

    def test_a_tokenizers_file_is_used(self, tmp_path):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, "[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        path = tmp_path / "words.json"
        tokenizer.save(str(path))
        modality = make("text", tokenizer=str(path), length=5)
        assert modality.process("hello big world")[0].tolist() == [1, 0, 2, 4, 0]
        assert modality.spec.details["vocabulary"] == 5
        assert modality.files() == [path]

    @staticmethod
    def words(tmp_path, change=lambda tokenizer: None, unknown=0):
        vocabulary = {"[UNK]": unknown, "hello": 1, "world": 7}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        change(tokenizer)
        tokenizer.save(str(tmp_path / "words.json"))
        return str(tmp_path / "words.json")

    @pytest.mark.parametrize("direction", ["left", "right"])
    def test_padding_and_truncation_of_a_tokenizers_file_are_switched_off(self, tmp_path, direction):
        def change(tokenizer):
            tokenizer.enable_padding(length=12, pad_id=0, pad_token="[UNK]", direction=direction)
            tokenizer.enable_truncation(4)

        modality = make("text", tokenizer=self.words(tmp_path, change), length=16)
        values, mask = modality.process("hello world")
        assert values[mask].tolist() == [1, 7, modality.end]
        assert modality.process("hello " * 6)[1].sum() == 7
        assert modality.lengths({"bytes": np.array([11])}, 100) == [13]

    def test_a_vocabulary_with_gaps_ends_after_its_largest_id(self, tmp_path):
        modality = make("text", tokenizer=self.words(tmp_path), length=5)
        assert modality.process("hello world")[0].tolist() == [1, 7, 9, 0, 0]
        assert modality.spec.details == {"vocabulary": 10, "begin": 8, "end": 9}
        special = tokenizers.processors.TemplateProcessing(single="[C] $A", special_tokens=[("[C]", 20)])
        path = self.words(tmp_path, lambda tokenizer: setattr(tokenizer, "post_processor", special))
        assert make("text", tokenizer=path).spec.details["vocabulary"] == 23

    def test_dropout_of_merges_is_switched_off(self, tmp_path):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, show_progress=False)
        tokenizer.train_from_iterator(["hello hello world worlds"] * 20, trainer)
        truth = tokenizer.encode("hello worlds").ids
        tokenizer.model.dropout = 0.5
        assert len({tuple(tokenizer.encode("hello worlds").ids) for _ in range(20)}) > 1
        tokenizer.save(str(tmp_path / "bpe.json"))
        modality = make("text", tokenizer=str(tmp_path / "bpe.json"), length=40)
        for _ in range(20):
            values, mask = modality.process("hello worlds")
            assert values[mask].tolist() == [*truth, modality.end]

    def test_a_sentencepiece_file_is_used(self, tmp_path):
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("the cat sat on the mat\nthe dog sat on the log\n" * 20)
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=19, minloglevel=3
        )
        path = tmp_path / "m.model"
        modality = make("text", tokenizer=str(path), length=40)
        values, mask = modality.process("the cat sat")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        assert processor.decode(values[mask][:-1].tolist()) == "the cat sat"
        assert values[mask][-1] == 20 and modality.files() == [path]

    @pytest.mark.parametrize("name", ["nowhere.json", "nowhere.model", "byte", "broken.json", "broken.model"])
    def test_a_tokenizer_that_cannot_be_loaded_is_a_user_error(self, tmp_path, name):
        if name.startswith("broken"):
            (tmp_path / name).write_text("not a tokenizer")
            name = str(tmp_path / name)
        with pytest.raises(ValueError, match="tokenizer.*; give"):
            Text(Text.Config(tokenizer=name))

    def test_the_sentence_is_the_argument_itself(self):
        assert make("text").read("what is it?", "--text") == "what is it?"
        with pytest.raises(UserError, match="UTF-8"):
            make("text").read("bad \udcff", "--text")


def test_modalities_can_be_sent_to_worker_processes(tmp_path):
    # Pickle is used only between our own processes, never to load a file.
    import multiprocessing.reduction

    for kind in MODALITIES:
        multiprocessing.reduction.ForkingPickler.dumps(make(kind))
    assert Audio.Config().sample_rate == 16_000


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 3)])
def test_cropping_leaves_the_margins_of_a_picture_out(shape):
    sheet = np.full(shape, 250, np.uint8)
    sheet[5, 3] = 240  # a shadow
    sheet[10:30, 12:22] = 20
    image = Image(Image.Config(size=(20, 20), channels=1, crop="content", fit="pad", mean=(0.0,), std=(1.0,)))
    values, _ = image.process(sheet)
    expected = np.full((20, 20, 1), 20 / 255, np.float32)
    np.testing.assert_allclose(values[:, 5:15], expected[:, 5:15], atol=0.01)
    blank, _ = image.process(np.full(shape, 7, np.uint8))
    np.testing.assert_allclose(blank, 7 / 255, atol=0.01)


class TestTable:
    OPTIONS = {
        "columns": ["age", "colour", "weight"],
        "categories": {"colour": ["blue", "green", "red"]},
        "mean": {"age": 40.0},
        "std": {"age": 20.0},
    }

    def test_numbers_are_standardised_categories_numbered_and_missing_cells_masked(self):
        table = make("table", **self.OPTIONS)
        assert table.spec.shape == (3,) and table.spec.details == {"categories": (0, 3, 0)}
        for raw in ({"age": 30, "colour": "red"}, [30, 2, np.nan], table.read("age=30, colour=red", "--facts")):
            values, mask = table.process(raw)
            assert values.tolist() == [-0.5, 2.0, 0.0] and mask.tolist() == [True, True, False]
        assert not table.process(table.read("age=?,colour=NA", "--facts"))[1].any()
        assert table.process({"weight": 1e9})[0].tolist() == [0.0, 0.0, 10.0]

    @pytest.mark.parametrize(
        "raw, said",
        [
            ([1, 2], "a row must have shape [3]"),
            ([1, 3, 0], "a category index is out of range"),
            ([1, 0.5, 0], "a category index is out of range"),
            ({"colour": "rde"}, "colour = 'rde' is not a category; did you mean 'red'?"),
            ({"age": "old"}, "age = 'old' is not a number"),
            ({"age": np.inf}, "age = inf is not finite"),
            ([np.inf, 1, 0], "a cell is infinite"),
        ],
    )
    def test_a_row_that_does_not_fit_is_refused(self, raw, said):
        with pytest.raises(ValueError) as error:
            make("table", **self.OPTIONS).process(raw)
        assert str(error.value).startswith(said)

    @pytest.mark.parametrize(
        "argument, said",
        [
            ("aeg=3", "--facts: unknown column 'aeg'; did you mean 'age'?"),
            ("colour=pink", "--facts: colour = 'pink' is not a category; choose from 'blue', 'green', 'red'"),
            ("age=x", "--facts: age = 'x' is not a number; give a number"),
            ("age", "--facts: 'age' has no value; give COLUMN=VALUE,COLUMN=VALUE"),
            ("age=41,age=42", "--facts: 'age' is given twice; give each column once"),
        ],
    )
    def test_a_row_on_the_command_line_that_does_not_fit_is_refused_in_one_line(self, argument, said):
        with pytest.raises(UserError) as error:
            make("table", **self.OPTIONS).read(argument, "--facts")
        assert str(error.value) == said

    @pytest.mark.parametrize(
        "changes, said",
        [
            ({"columns": []}, "table: columns = () is empty or has duplicates"),
            ({"columns": ["age", "age"]}, "table: columns = ('age', 'age') is empty or has duplicates"),
            ({"mean": {"aeg": 1.0}}, "table: mean has an unknown column 'aeg'; did you mean 'age'?"),
            ({"std": {"age": 0.0}}, "table: std or largest has a value that is not positive"),
        ],
    )
    def test_invalid_columns_are_refused(self, changes, said):
        with pytest.raises(UserError) as error:
            make("table", **{**self.OPTIONS, **changes})
        assert str(error.value).startswith(said)

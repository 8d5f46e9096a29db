"""Optional downsizing of images and recordings during preparation; without the options nothing is changed."""

from __future__ import annotations

import csv
import io
import pathlib

import numpy as np
import PIL.Image
import pytest
import scipy.signal
import soundfile

from mmjax.config import build
from mmjax.datasets import Mixture, Prepared
from mmjax.datasets.recorded import RecordedDataset, describe, differences
from mmjax.errors import UserError
from mmjax.evaluation.predictor import input_warnings, make_reductions, read_inputs, read_raw
from mmjax.modalities import MODALITIES
from mmjax.prepare.kinds import KINDS, File
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local


def kind(name: str, **reduce):
    return PrepareConfig(source="", reduce={name: reduce}).kind(name)


def photograph(form: str, size=(61, 40), mode: str = "RGB") -> bytes:
    draws = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(draws.integers(0, 256, (3, 4, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, PIL.Image.Resampling.BICUBIC).convert(mode).save(buffer, form, quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_large_picture_shrinks_to_its_shorter_side_and_keeps_its_format(form, mode):
    image = kind("image", shortest=20)
    data = photograph(form, mode=mode)
    whole = image.decode(data)
    small = image.reduced(whole)
    assert small.pixels.shape[:2] == (20, 30)
    stored = image.stored(small, {"channels": {"largest": 1 if mode == "L" else 3}})
    assert PIL.Image.open(io.BytesIO(stored)).format == form
    # The measured pixels equal the stored ones, bit for bit.
    assert np.array_equal(KINDS["image"]().restore(stored), small.pixels)
    # Each pixel is close to the mean of the pixels that it replaces.
    truth = np.asarray(PIL.Image.fromarray(whole.pixels).resize((30, 20), PIL.Image.Resampling.BOX), np.float32)
    assert np.abs(small.pixels - truth).mean() < 6


def test_a_small_picture_keeps_its_very_bytes():
    image = kind("image", shortest=40)
    data = photograph("JPEG")
    assert image.reduced(image.decode(data)).file == data


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_is_resampled_channel_by_channel(channels):
    rate, wanted = 44_100, 16_000
    time = np.arange(rate) / rate
    samples = np.stack([np.sin(2 * np.pi * frequency * time) for frequency in (440, 700)][:channels], axis=1) / 2
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    audio = kind("audio", rate=wanted)
    found, now = audio.reduced(audio.decode(File("a.wav", buffer.getvalue())))
    assert now == wanted and found.shape == (wanted,) if channels == 1 else found.shape == (wanted, 2)
    truth = scipy.signal.resample(samples, wanted, axis=0).reshape(found.shape)
    # The resampler's edge effects are excluded.
    assert np.abs(found - truth)[200:-200].max() < 1e-3


def test_lower_rates_are_kept_and_channels_are_averaged_on_request():
    samples = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    assert kind("audio", rate=16_000).reduced((samples, 8000)) == (samples, 8000)
    mixed, rate = kind("audio", mono=True).reduced((samples, 8000))
    assert rate == 8000 and np.allclose(mixed, samples.mean(axis=1), atol=1e-6)


def test_a_prepared_folder_holds_and_indexes_what_is_kept(tmp_path):
    source = tmp_path / "photographs"
    source.mkdir()
    sizes = [(40, 60), (90, 30), (16, 16), (100, 101)]
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).resize(size).save(source / f"{number}.png")

    def lengths(name: str, **reduce) -> list[tuple[int, int]]:
        section = {"source": str(source), "splits": {"train": 1.0}, "reduce": {"image": reduce}}
        prepare(build(PrepareConfig, section, ""), tmp_path / name, Local(1))
        dataset = Prepared(Prepared.Config(path=str(tmp_path / name)))
        columns = dataset.columns("train")
        stored = [record.inputs["image"].shape[:2] for record in map(dataset.source("train").__getitem__, range(4))]
        index = zip(columns["image/height"].tolist(), columns["image/width"].tolist(), strict=True)
        assert [tuple(map(int, each)) for each in index] == stored
        return sorted(stored)

    assert lengths("whole") == sorted(size[::-1] for size in sizes)
    assert lengths("small", shortest=20) == [(16, 16), (20, 20), (20, 60), (30, 20)]


@pytest.mark.parametrize("section", [{"picture": {}}, {"image": {"smallest": 3}}, {"text": {"shortest": 3}}])
def test_invalid_reductions_are_refused(section):
    with pytest.raises((ValueError, UserError), match="reduce"):
        PrepareConfig(source="", reduce=section)


def test_a_recording_that_was_clipped_is_found_though_it_is_resampled(tmp_path):
    source = tmp_path / "recordings"
    source.mkdir()
    noise = scipy.signal.resample(np.random.default_rng(0).normal(size=4000), 44_100)
    for name, gain in (("loud", 1.0), ("quiet", 0.1)):
        soundfile.write(source / f"{name}.wav", np.clip(gain * noise, -1, 1), 44_100)
    config = build(PrepareConfig, {"source": str(source), "reduce": {"audio": {"rate": 16_000}}}, "")
    done = prepare(config, tmp_path / "out", Local(1))
    found = (tmp_path / "out" / "findings.jsonl").read_text()
    assert done.report["dropped"] == 1 and "clipped" in found and "loud" in found and "quiet" not in found


def write_files(kind: str, folder: pathlib.Path) -> list[str]:
    """Six files of one kind that a reduction changes. Returns their names."""
    draws, names = np.random.default_rng(1), []
    for number in range(6):
        smooth = draws.random((9, 9, 3))
        if kind == "audio":
            names.append(f"{number}.wav")
            noise = scipy.signal.resample(draws.normal(size=(3000 + 200 * number, 2)), 44_100) / 8
            soundfile.write(folder / names[-1], np.clip(noise, -0.9, 0.9), 44_100, subtype="PCM_24")
            continue
        names.append(f"{number}.{'jpg' if kind == 'jpeg' else 'png'}")
        size = (70 + number, 50)
        if kind == "deep":
            grey = PIL.Image.fromarray(smooth[..., 0].astype(np.float32)).resize(size, PIL.Image.Resampling.BICUBIC)
            picture = PIL.Image.fromarray(np.uint16(1000 + 400 * number + 2000 * np.clip(grey, 0, 1)))
        else:
            picture = PIL.Image.fromarray(np.uint8(255 * smooth)).resize(size, PIL.Image.Resampling.BICUBIC)
            if kind == "png" and number % 2:
                picture = picture.convert("L")
        picture.save(folder / names[-1])
    return names


CASES = {
    "png": ("image", {"shortest": 20}, {"size": (64, 64), "channels": 3}),
    "jpeg": ("image", {"shortest": 20}, {"size": (64, 64), "channels": 3}),
    "deep": ("image", {"shortest": 20}, {"size": (64, 64), "channels": 1}),
    "audio": ("audio", {"rate": 8000, "mono": True}, {"sample_rate": 16_000, "seconds": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_predict_reads_a_file_as_training_reads_its_stored_record(tmp_path, case):
    kind_name, reduce, options = CASES[case]
    names = write_files(case, tmp_path)
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["key", "raw", "label"], *([name, name, "ab"[i % 2]] for i, name in enumerate(names))])
    section = {
        "source": str(tmp_path / "data.csv"),
        "splits": {"train": 1.0},
        "keep": ["duplicate"],
        "reduce": {kind_name: reduce},
    }
    prepare(build(PrepareConfig, section, ""), tmp_path / "out", Local(1))
    dataset = Prepared(Prepared.Config(path=str(tmp_path / "out")))
    recorded = RecordedDataset(describe(dataset))
    cls = MODALITIES[kind_name]
    modalities = {"raw": cls(build(cls.Config, {**dataset.dataset_options["raw"], **options}, ""))}
    reductions = make_reductions(recorded)
    source = dataset.source("train")
    assert len(source) == 6
    for index in range(6):
        given = {"raw": str(tmp_path / source.stored(index)["key"].decode())}
        values, mask = modalities["raw"].process(source[index].inputs["raw"])
        found = read_inputs(modalities, given, None, reductions)["raw"]
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.mask, mask)
        assert not np.array_equal(read_inputs(modalities, given)["raw"].values, values)
        raws = read_raw(modalities, given, reductions)
        assert input_warnings(recorded.inputs, modalities, raws, reductions) == []


def test_a_mixture_and_its_record_keep_the_reduction_of_the_first_dataset_with_an_input():
    class Part:
        targets, splits = {}, ("train",)

        def __init__(self, inputs, rate):
            self.inputs = dict.fromkeys(inputs, "audio")
            self.reductions = {name: {"options": {"rate": rate}, "summary": {}} for name in inputs if rate}

    def make_dataset(section, shared, where):
        return shared(name="x", rename=section.get("rename", {})), section["part"]

    datasets = {
        "plain": {"part": Part(["near"], None)},
        "small": {"part": Part(["near", "far"], 8000), "rename": {"far": "voice"}},
        "smaller": {"part": Part(["voice"], 4000)},
    }
    mixture = Mixture(Mixture.Config(datasets=datasets), make_dataset)
    expected = {"voice": {"options": {"rate": 8000}, "summary": {}}}
    assert mixture.reductions == expected and RecordedDataset(describe(mixture)).reductions == expected
    changed = describe(mixture) | {"reduced": {}}
    assert differences(describe(mixture), changed) == ["the data reduction of the input 'voice' differs"]
    # Records of earlier versions do not have the key.
    old = {key: value for key, value in changed.items() if key != "reduced"}
    assert differences(old, describe(mixture)) == [] and RecordedDataset(old).reductions == {}


def test_predict_warns_about_the_faults_of_a_file_before_it_is_reduced(tmp_path):
    class Stored:
        inputs = {"voice": "audio"}
        reductions = {"voice": {"options": {"rate": 8000}, "summary": {}}}

    noise = scipy.signal.resample(np.random.default_rng(0).normal(size=4000), 44_100)
    soundfile.write(tmp_path / "loud.wav", np.clip(noise, -1, 1), 44_100)
    reductions = make_reductions(Stored())
    raws = {"voice": reductions["voice"].read(str(tmp_path / "loud.wav"), "--voice")}
    (warning,) = input_warnings(Stored.inputs, {"voice": None}, raws, reductions)
    assert warning.startswith("--voice: clipped, ")
    (tmp_path / "text.wav").write_text("hello")
    for name, problem in (("text.wav", "cannot be read"), ("gone.wav", "does not exist")):
        with pytest.raises(UserError, match=f"^--voice: .*{problem}"):
            reductions["voice"].read(str(tmp_path / name), "--voice")

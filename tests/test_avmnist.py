"""The avmnist dataset, on files that these tests write: no leaks between splits, damaged files, unusual layouts."""

from __future__ import annotations

import collections
import gzip
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import scipy.io.wavfile

from configs import avmnist as recipe
from mmjax.config import build
from mmjax.datasets import Avmnist
from mmjax.datasets.digits import arithmetic
from mmjax.datasets.digits.avmnist import choose_speakers
from mmjax.datasets.digits.digit_files import find_digit_files
from mmjax.errors import UserError
from tests.digit_files import write_idx, write_images, write_recordings
from tests.test_digits import speech_is_installed

ROOT = pathlib.Path(__file__).parents[1]
SPEAKERS = ["ann", "Mary_Jane", "07", "zoë o'neil"]
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("raw")
    write_images(folder / "MNIST" / "raw", 12, ending=".gz")
    write_recordings(folder / "voices" / "recordings", SPEAKERS)
    # Files that macOS writes beside others, and an unrelated file.
    (folder / "voices" / "recordings" / "._0_ann_0.wav").write_bytes(b"\0\5\26\7")
    (folder / "voices" / "README.md").write_text("recordings")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


def dataset(raw: pathlib.Path, cache: pathlib.Path, **options) -> Avmnist:
    return Avmnist(build(Avmnist.Config, {"path": str(raw), "cache": str(cache), **options}, "data"))


def stored(data: Avmnist, split: str) -> list[dict]:
    source = data.source(split)
    return [source.stored(index) for index in range(len(source))]


@pytest.mark.parametrize("task", ["arithmetic", "matched"])
class TestRecords:
    def test_no_speaker_recording_or_image_is_in_two_splits(self, raw, cache, task):
        records = {split: stored(dataset(raw, cache, task=task), split) for split in SPLITS}
        for what in ("speaker", "recording", "picture", "image"):
            found = {split: {np.asarray(record[what]).tobytes() for record in records[split]} for split in SPLITS}
            for one, other in itertools.combinations(SPLITS, 2):
                assert found[one] and not found[one] & found[other], what
        speakers = {split: {record["speaker"].decode() for record in records[split]} for split in SPLITS}
        assert speakers == {"train": {"07", "Mary_Jane"}, "validation": {"ann"}, "test": {"zoë o'neil"}}

    def test_records_are_balanced_and_match_their_targets(self, raw, cache, task):
        data = dataset(raw, cache, task=task)
        for split in SPLITS:
            combinations, pictures, recordings = (collections.Counter() for _ in range(3))
            for record in stored(data, split):
                seen, heard = int(record["image"][0, 0]), int(record["audio"][0]) // 1000
                pictures[seen, record["picture"]] += 1
                recordings[heard, record["recording"]] += 1
                if task == "matched":
                    assert seen == heard == record["digit"]
                    combinations[seen] += 1
                    continue
                operation = list(arithmetic.OPERATIONS)[record["operation"]]
                assert (seen, heard) == (record["image_digit"], record["audio_digit"])
                assert data.targets["answer"].classes[record["answer"]] == arithmetic.answer(seen, heard, operation)
                assert record["text"].decode() in arithmetic.OPERATIONS[operation].phrasings
                combinations[seen, heard, operation] += 1
            assert len(combinations) == (10 if task == "matched" else 600) and len(set(combinations.values())) == 1
            # Images and recordings are used equally often.
            for digit in range(10):
                for counts in (pictures, recordings):
                    own = [count for (of, _), count in counts.items() if of == digit]
                    assert max(own) - min(own) <= 1
            assert len(recordings) == {"train": 40, "validation": 20, "test": 20}[split]
            assert len(pictures) == {"train": 90, "validation": 10, "test": 20}[split]

    def test_records_suit_their_modalities(self, raw, cache, task):
        data = dataset(raw, cache, task=task, missing_fraction={"audio": 0.5})
        record = data.source("validation")[3]
        assert set(record.inputs) == set(data.inputs) and set(record.targets) == set(data.targets)
        assert record.inputs["image"].shape == (6, 5) and record.inputs["image"].dtype == np.uint8
        assert record.inputs["audio"][0].dtype == np.int16 and record.inputs["audio"][1] == 8000
        assert set(data.ceilings("test")) <= set(data.targets)
        source = data.source("train")
        gone = [source[index].inputs["audio"] is None for index in range(len(source))]
        assert 0.3 < np.mean(gone) < 0.7

    def test_records_do_not_depend_on_paths_or_archives(self, raw, cache, task, tmp_path):
        write_images(tmp_path, 12)
        with tarfile.open(tmp_path / "recordings.tar.gz", "w:gz") as archive:
            archive.add(raw / "voices" / "recordings", "fsdd/recordings")
        again = dataset(tmp_path, tmp_path / "cache", task=task)
        assert again.checksum == dataset(raw, cache, task=task).checksum


def test_other_files_and_other_speakers_are_prepared_anew(raw, cache, tmp_path):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    options = [{}, {"held_out": "ann"}, {"validation": "07"}, {"validation": []}]
    folders = [dataset(copy, cache, task="matched", **each).prepare() for each in options]
    assert dataset(raw, cache, task="matched").prepare() == folders[0]
    # Same name and length, other content.
    path = copy / "voices" / "recordings" / "3_07_1.wav"
    rate, samples = scipy.io.wavfile.read(path)
    scipy.io.wavfile.write(path, rate, samples + np.int16(1))
    folders.append(dataset(copy, cache, task="matched").prepare())
    assert len(set(folders)) == 5


def test_without_a_validation_speaker_the_split_is_left_out_and_all_others_train(raw, cache):
    data = dataset(raw, cache, task="matched", held_out=["ann", "07"], validation=[])
    assert data.splits == ("train", "test")
    assert {record["speaker"].decode() for record in stored(data, "train")} == {"Mary_Jane", "zoë o'neil"}
    assert {record["speaker"].decode() for record in stored(data, "test")} == {"ann", "07"}
    with pytest.raises(UserError, match="unknown split 'validation'"):
        data.source("validation")


def test_mnist_test_files_are_the_test_split_and_keep_images_shared_with_training(raw, tmp_path):
    shutil.copytree(raw / "voices", tmp_path / "voices")
    write_images(tmp_path, 12)
    write_images(tmp_path, 3, prefix="t10k", ending=".gz", seed=1)
    images = np.frombuffer((tmp_path / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 6, 5)
    tests = np.random.default_rng(1).integers(0, 256, (30, 6, 5)).astype(np.uint8)
    tests[:, 0, 0] = np.repeat(np.arange(10), 3)
    tests[0] = images[0]
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", tests)
    data = dataset(tmp_path, tmp_path / "cache", task="matched")
    shown = {split: {record["image"].tobytes() for record in stored(data, split)} for split in SPLITS}
    assert shown["test"] == {image.tobytes() for image in tests}
    assert len(shown["train"] | shown["validation"]) == 119 and not shown["test"] & (
        shown["train"] | shown["validation"]
    )


@speech_is_installed
def test_synthetic_speech_replaces_its_share_of_the_training_examples_only(raw, cache):
    data = dataset(raw, cache, task="matched", synthetic=0.5)
    train = stored(data, "train")
    said = [record for record in train if not record["recording"]]
    assert 0.3 < len(said) / len(train) < 0.7
    assert all(b"+" in record["speaker"] and record["rate"] == 8000 for record in said)
    assert all(800 < len(record["audio"]) <= 8000 for record in said)
    assert all(record["recording"] for split in ("validation", "test") for record in stored(data, split))


class TestFiles:
    def test_stereo_floating_and_other_rates_become_int16_of_one_channel(self, tmp_path):
        write_images(tmp_path, 12)
        write_recordings(tmp_path, ["a", "b"])
        stereo = np.stack([np.full(50, 0.5), np.full(50, 0.25)], axis=1).astype(np.float32)
        write_recordings(tmp_path, ["c"], count=1, rate=44_100)
        for digit in range(10):
            scipy.io.wavfile.write(tmp_path / f"{digit}_c_0.WAV", 44_100, stereo)
            (tmp_path / f"{digit}_c_0.wav").unlink()
        data = dataset(tmp_path, tmp_path / "cache", task="matched", held_out="c")
        samples, rate = data.source("test")[0].inputs["audio"]
        assert rate == 44_100 and samples.tolist() == [12_288] * 50

    def test_an_idx_file_that_is_cut_short_is_a_user_error_that_names_it(self, raw, tmp_path):
        shutil.copytree(raw, tmp_path / "raw")
        path = tmp_path / "raw" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        plain = gzip.decompress(whole)
        damages = [whole[:-20], plain[:-7], plain[:10], plain[:2], b"", b"<html>", b"\x1f\x8b"]
        for content in damages:
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz.*provide the complete idx file"):
                dataset(tmp_path / "raw", tmp_path / "cache").prepare()
        assert not list((tmp_path / "cache").glob("avmnist/arithmetic/1.0.0-*[0-9a-f]"))

    def test_labels_of_other_images_are_a_user_error(self, raw, tmp_path):
        shutil.copytree(raw, tmp_path / "raw")
        for labels, problem in ((np.zeros(7, np.uint8), "7 labels"), (np.full(120, 26, np.uint8), "label 26")):
            write_idx(tmp_path / "raw" / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz", labels)
            with pytest.raises(UserError, match=problem):
                dataset(tmp_path / "raw", tmp_path / "cache").prepare()

    def test_a_recording_that_is_no_wav_file_is_a_user_error_that_names_it(self, raw, tmp_path):
        shutil.copytree(raw, tmp_path / "raw")
        (tmp_path / "raw" / "voices" / "recordings" / "4_ann_0.wav").write_bytes(b"RIFF")
        with pytest.raises(UserError, match=r"4_ann_0\.wav.*cannot be read as WAV"):
            dataset(tmp_path / "raw", tmp_path / "cache").prepare()

    def test_an_archive_that_is_cut_short_is_a_user_error_that_names_it(self, tmp_path):
        write_images(tmp_path, 12)
        (tmp_path / "recordings.tar.gz").write_bytes(gzip.compress(b"x" * 5000)[:-9])
        with pytest.raises(UserError, match=r"recordings\.tar\.gz.*cannot be unpacked"):
            find_digit_files(tmp_path)

    def test_missing_files_are_one_message_with_the_expected_layout(self, tmp_path):
        write_recordings(tmp_path / "voices", ["a"])
        for folder, problem in (
            (tmp_path / "nowhere", "nowhere' is not a folder"),
            (tmp_path / "voices", "has no MNIST images with their labels; put MNIST's train-images-idx3-ubyte"),
        ):
            with pytest.raises(UserError, match=problem) as caught:
                find_digit_files(folder)
            assert "DIGIT_SPEAKER_INDEX.wav" in str(caught.value) and "MMJAX_DATA" in str(caught.value)

    def test_two_sets_of_images_are_refused_and_two_copies_of_one_are_not(self, raw, tmp_path):
        shutil.copytree(raw, tmp_path / "raw")
        write_images(tmp_path / "raw" / "plain", 12)
        assert len(find_digit_files(tmp_path / "raw").images) == 1
        write_images(tmp_path / "raw" / "FashionMNIST", 12, seed=5)
        with pytest.raises(UserError, match="contain different images"):
            find_digit_files(tmp_path / "raw")

    def test_an_environment_variable_gives_the_folder_of_the_files(self, raw, cache, monkeypatch):
        monkeypatch.setenv("MMJAX_DATA", str(raw))
        assert len(Avmnist(Avmnist.Config(cache=str(cache))).files.recordings) == 80


class TestSpeakers:
    def test_by_default_the_last_are_held_out(self):
        assert choose_speakers(["b", "d", "a", "c", "a"]) == (("a", "b"), ("c",), ("d",))

    def test_the_default_of_validation_is_never_a_speaker_of_test(self):
        for name in SPEAKERS:
            speakers = choose_speakers(SPEAKERS, name)
            assert speakers.test == (name,) and name not in speakers.validation + speakers.train
            assert sorted(itertools.chain(*speakers)) == sorted(SPEAKERS)

    @pytest.mark.parametrize(
        ("held_out", "validation", "problem"),
        [
            ("an", None, "held_out.*no recordings of speaker 'an'; did you mean 'ann'"),
            ("ann", "bob", "validation.*no recordings of speaker 'bob'"),
            (("ann", "07"), "07", "'07' is also a test speaker"),
            (tuple(SPEAKERS), None, "no speaker remains for training"),
            (tuple(SPEAKERS[:3]), None, "no speaker remains for training"),
        ],
    )
    def test_invalid_speakers_are_user_errors(self, held_out, validation, problem):
        with pytest.raises(UserError, match=problem):
            choose_speakers(SPEAKERS, held_out, validation)

    def test_a_speaker_without_recordings_of_a_digit_cannot_be_a_split(self, raw, tmp_path):
        shutil.copytree(raw, tmp_path / "raw")
        for path in (tmp_path / "raw" / "voices" / "recordings").glob("7_ann_*"):
            path.unlink()
        with pytest.raises(UserError, match="split 'validation' .*'ann'.* has no recording of the digit 7"):
            dataset(tmp_path / "raw", tmp_path / "cache").prepare()

    @pytest.mark.parametrize("section", [{"held_out": []}, {"held_out": ""}, {"synthetic": 1.5}, {"held_out": 7}])
    def test_an_invalid_config_is_a_user_error(self, section):
        with pytest.raises(UserError):
            build(Avmnist.Config, section, "data")


class TestRecipe:
    @pytest.mark.parametrize(
        ("argument", "speaker", "inputs", "tasks"),
        [
            ("arithmetic", None, {"image", "audio", "text"}, {"answer", "image_digit", "audio_digit", "operation"}),
            ("matched,speaker=jackson", "jackson", {"image", "audio"}, {"digit", "image_audio"}),
            ("matched,inputs=audio,speaker=george", "george", {"audio"}, {"digit"}),
            ("matched,inputs=image", None, {"image"}, {"digit"}),
        ],
    )
    def test_the_recipe_argument_selects_speakers_and_inputs(self, argument, speaker, inputs, tasks):
        config = recipe.get_config(argument)
        assert config.data.held_out == speaker and config.data.task == argument.split(",")[0]
        assert set(config.model.encoders) == set(config.data.inputs) == inputs and set(config.tasks) == tasks
        assert set(config.data.augment) <= inputs and set(config.data.modality_dropout) <= inputs

    @pytest.mark.parametrize(
        "argument", ["matches", "matched,jackson", "matched,speaker=", "speaker=jackson", "matched,inputs=text"]
    )
    def test_another_argument_is_refused(self, argument):
        with pytest.raises(ValueError, match="no argument of this recipe"):
            recipe.get_config(argument)

    @pytest.mark.parametrize("task", ["arithmetic", "matched"])
    def test_batches_of_the_recipe_have_everything(self, raw, cache, task):
        from mmjax.experiment import Experiment

        config = recipe.get_config(task)
        config.data.path, config.data.cache, config.train.batch_size = str(raw), str(cache), 16
        config.data.modality_dropout = {}
        experiment = Experiment(config)
        batch = experiment.pipeline.batch_at("train", 16, 0)
        assert experiment.pipeline.broken == {"train": set()}
        assert all(np.asarray(each.mask).any() for each in batch.inputs.values())

    def test_without_files_the_command_ends_with_2_and_one_line(self, tmp_path):
        words = ["--config=configs/avmnist.py:matched", f"--workdir={tmp_path / 'run'}"]
        done = subprocess.run(
            [sys.executable, "-m", "mmjax", "train", *words],
            cwd=ROOT,
            env={**os.environ, "MMJAX_DATA": str(tmp_path), "MMJAX_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
        assert "train-images-idx3-ubyte" in done.stderr and not (tmp_path / "run").exists()

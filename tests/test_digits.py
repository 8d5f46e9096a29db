"""The digits dataset: balanced, without leaks, deterministic, and written completely or not at all."""

from __future__ import annotations

import collections
import itertools
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmjax.config import build
from mmjax.datasets import DATASETS, Digits, cache
from mmjax.datasets.digits import arithmetic
from mmjax.datasets.digits.digits import SPLITS, TARGETS
from mmjax.errors import UserError
from mmjax.files import cache_folder

ROOT = pathlib.Path(__file__).parents[1]
speech_is_installed = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import espeakng_loader"], capture_output=True).returncode != 0,
    reason="espeakng-loader (extra 'demo') is not installed",
)


def run(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stdout=subprocess.PIPE, text=True
    )


class TestArithmetic:
    def test_answers_are_all_results_in_order(self):
        numbers = [int(answer) for answer in arithmetic.ANSWERS]
        assert numbers == sorted(set(numbers)) and min(numbers) == -9 and max(numbers) == 81

    @pytest.mark.parametrize(
        ("operation", "answer"),
        [("plus", "10"), ("minus", "-4"), ("times", "21"), ("larger", "7"), ("smaller", "3"), ("distance", "4")],
    )
    def test_operations_compute_what_they_say(self, operation, answer):
        assert arithmetic.answer(3, 7, operation) == answer

    def test_every_phrasing_names_one_operation_and_fits_32_bytes(self):
        owners = collections.Counter(text for o in arithmetic.OPERATIONS.values() for text in o.phrasings)
        assert max(owners.values()) == 1
        assert all(len(text.encode()) < 32 for text in owners)

    @pytest.mark.parametrize("copies", [1, 2, 14])
    def test_latents_are_balanced_and_every_phrasing_occurs(self, copies):
        questions = arithmetic.balanced_questions(copies)
        combinations = collections.Counter((q.a, q.b, q.operation) for q in questions)
        assert len(combinations) == 600 and set(combinations.values()) == {copies}
        phrasings = collections.Counter(q.text for q in questions)
        assert len(phrasings) == 24 and min(phrasings.values()) >= 0.8 * max(phrasings.values())

    @pytest.mark.parametrize("outcomes", [arithmetic.arithmetic_outcomes(), arithmetic.matched_outcomes()])
    def test_ceilings_are_those_of_the_best_lookup_table(self, outcomes):
        # Independent truth: fit a majority-vote table on all cases, equally weighted, and score it on them.
        ceilings = arithmetic.ceilings(outcomes)
        assert len(ceilings) == 7
        for subset, ceiling in ceilings.items():
            names = subset.split("+")
            votes = collections.defaultdict(list)
            for outcome in outcomes:
                votes[tuple(outcome.revealed[name] for name in names)].append(outcome.answer)
            table = {seen: max(set(answers), key=answers.count) for seen, answers in votes.items()}
            right = [table[tuple(o.revealed[name] for name in names)] == o.answer for o in outcomes]
            assert ceiling == pytest.approx(np.mean(right), abs=1e-12)

    def test_only_all_three_inputs_together_answer_everything(self):
        ceilings = arithmetic.ceilings(arithmetic.arithmetic_outcomes())
        assert ceilings.pop("audio+image+text") == 1.0
        assert max(ceilings.values()) < 0.4

    def test_the_ceiling_without_the_question_is_counted_by_hand(self):
        # Without the question, the best answer is the most frequent result of the six operations.
        best = 0
        for a, b in itertools.product(range(10), range(10)):
            results = [a + b, a - b, a * b, max(a, b), min(a, b), abs(a - b)]
            best += max(results.count(result) for result in results)
        assert arithmetic.ceilings(arithmetic.arithmetic_outcomes())["audio+image"] == pytest.approx(best / 600)


class TestCache:
    WRITE = (
        "import pathlib, sys, time; from mmjax.datasets import cache\n"
        "def write(folder):\n"
        "    (folder / 'out').mkdir(); (folder / 'out' / 'x').write_text('half')\n"
        "    open(sys.argv[2], 'a').write('w'); time.sleep(float(sys.argv[3]))\n"
        "    (folder / 'out' / 'x').write_text('whole'); return folder / 'out'\n"
        "folder = cache.prepare_once(pathlib.Path(sys.argv[1]), write, lambda folder: 'sum')\n"
        "print((folder / 'x').read_text(), cache.checksum(folder))\n"
    )

    def test_concurrent_processes_prepare_once_and_read_the_same(self, tmp_path):
        processes = [run(self.WRITE, tmp_path / "data", tmp_path / "log", 1.0) for _ in range(3)]
        results = {process.communicate(timeout=240)[0] for process in processes}
        assert len(results) == 1 and results.pop().startswith("whole sum")
        assert (tmp_path / "log").read_text() == "w"

    def test_a_killed_preparation_leaves_nothing_that_counts_as_finished(self, tmp_path):
        process = run(self.WRITE, tmp_path / "data", tmp_path / "log", 60)
        while not (tmp_path / "log").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "data").exists()
        again = run(self.WRITE, tmp_path / "data", tmp_path / "log", 0)
        assert again.communicate(timeout=240)[0].startswith("whole sum")
        assert not list(tmp_path.glob("*.partial"))

    def test_a_folder_that_cannot_be_made_is_a_user_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="MMJAX_CACHE"):
            cache.prepare_once(tmp_path / "file" / "digits" / "1", lambda folder: folder, str)

    def test_the_config_overrides_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "environment"))
        assert cache_folder("") == tmp_path / "environment"
        assert cache_folder(str(tmp_path / "config")) == tmp_path / "config"
        monkeypatch.delenv("MMJAX_CACHE")
        assert cache_folder("") == pathlib.Path.home() / ".cache" / "mmjax"


def test_the_table_of_datasets_imports_quickly():
    slow = ("grain", "tensorflow_datasets", "sklearn")
    code = f"import sys, mmjax.datasets; print([m for m in {slow} if m in sys.modules])"
    assert run(code).communicate(timeout=240)[0].strip() == "[]"
    assert DATASETS["digits"] is Digits


@pytest.mark.parametrize("fields", [{"task": "arithmetics"}, {"missing": {"image": 1.0}}, {"tasks": "matched"}])
def test_an_invalid_config_is_a_user_error(fields):
    with pytest.raises(UserError):
        build(Digits.Config, fields, "data")


def test_an_unknown_missing_input_is_a_user_error():
    with pytest.raises(UserError, match="did you mean 'image'"):
        Digits(Digits.Config(missing_fraction={"imgae": 0.5}))


def test_without_the_speech_package_the_user_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install 'mmjax\[demo\]'"):
        Digits(Digits.Config(cache=str(tmp_path))).prepare()
    assert not (tmp_path / "digits" / "arithmetic" / "1.0.0").exists()


@pytest.fixture(scope="module")
def datasets(digits_cache):
    return {task: Digits(Digits.Config(task=task, cache=str(digits_cache))) for task in TARGETS}


@pytest.fixture(scope="module")
def stored(datasets):
    def everything(task, split):
        source = datasets[task].source(split)
        return [source.stored(index) for index in range(len(source))]

    return {(task, split): everything(task, split) for task in TARGETS for split in SPLITS}


@speech_is_installed
class TestSpeech:
    def test_the_same_utterances_are_equal_bit_for_bit(self):
        from mmjax.datasets.digits.speech import Utterance, synthesise

        utterances = [Utterance(word, "en-us+f3", 150 + 10 * i) for i, word in enumerate(arithmetic.WORDS)]
        first, second = synthesise(utterances), synthesise(utterances)
        assert len(first) == 10 and all(map(np.array_equal, first, second))
        assert all(samples.dtype == np.int16 and 1_600 < len(samples) < 16_000 for samples in first)
        assert all(2_000 < np.abs(samples.astype(int)).max() < 32_767 for samples in first)

    def test_speech_does_not_depend_on_the_number_of_processes(self, monkeypatch):
        from mmjax.datasets.digits import speech

        monkeypatch.setattr(speech, "_UTTERANCES_PER_PROCESS", 4)
        utterances = [speech.Utterance(word) for word in arithmetic.WORDS]
        progress: list[int] = []
        beside = speech.synthesise(utterances, progress.append)
        monkeypatch.setattr(speech, "visible_cores", lambda: 1)
        assert all(map(np.array_equal, beside, speech.synthesise(utterances)))
        assert sum(progress) == 10

    @pytest.mark.parametrize(
        ("voice", "problem"), [("en+nosuch", "no variant"), ("en-gb", "has no voice"), ("xx", "has no voice")]
    )
    def test_an_unknown_voice_is_a_user_error(self, voice, problem):
        from mmjax.datasets.digits.speech import Utterance, synthesise

        with pytest.raises(UserError, match=problem):
            synthesise([Utterance("one", voice)])

    def test_speed_and_pitch_change_the_sound(self):
        from mmjax.datasets.digits.speech import Utterance, synthesise

        slow, fast, high = synthesise(
            [Utterance("seven", speed=130), Utterance("seven", speed=210), Utterance("seven", pitch=80)]
        )
        assert len(slow) > 1.3 * len(fast)

        # Fundamental frequency: the lag of the largest autocorrelation between 60 and 400 Hz.
        def fundamental(samples):
            samples = samples / 32768
            correlation = np.correlate(samples, samples, "full")[len(samples) :]
            return 16_000 / (40 + np.argmax(correlation[40:266]))

        assert fundamental(high) > 1.1 * fundamental(slow)


@speech_is_installed
class TestDigits:
    @pytest.mark.parametrize("task", TARGETS)
    def test_splits_have_their_sizes(self, stored, task):
        sizes = {"arithmetic": [8400, 600, 1200, 1200], "matched": [4000, 500, 1000, 1000]}[task]
        assert [len(stored[task, split]) for split in SPLITS] == sizes

    @pytest.mark.parametrize("task", TARGETS)
    def test_no_picture_or_voice_of_training_is_in_another_split(self, stored, task):
        def of(split, what):
            return {what(record) for record in stored[task, split]}

        pictures = {split: of(split, lambda record: record["image"].tobytes()) for split in SPLITS}
        voices = {split: of(split, lambda record: record["voice"].split(b"+")[1]) for split in SPLITS}
        accents = {split: of(split, lambda record: record["voice"].split(b"+")[0]) for split in SPLITS}
        for one, other in itertools.combinations(["train", "validation", "test"], 2):
            assert not pictures[one] & pictures[other] and not voices[one] & voices[other]
        assert not pictures["train"] & pictures["accents"] and not voices["train"] & voices["accents"]
        assert not accents["train"] & accents["accents"]
        assert len(voices["train"]) == 42 and len(voices["test"]) == 10

    @pytest.mark.parametrize("split", SPLITS)
    def test_arithmetic_is_balanced_and_its_answers_are_right(self, datasets, stored, split):
        answers, names = datasets["arithmetic"].targets["answer"].classes, tuple(arithmetic.OPERATIONS)
        combinations = collections.Counter()
        for record in stored["arithmetic", split]:
            a, b, operation = record["image_digit"], record["audio_digit"], names[record["operation"]]
            combinations[a, b, operation] += 1
            assert answers[record["answer"]] == arithmetic.answer(a, b, operation)
            assert record["text"].decode() in arithmetic.OPERATIONS[operation].phrasings
        assert len(combinations) == 600 and len(set(combinations.values())) == 1

    def test_pictures_show_the_digit_of_their_target(self, stored):
        import sklearn.datasets

        digits = sklearn.datasets.load_digits()
        for (task, _), records in stored.items():
            for record in records:
                target = record["image_digit"] if task == "arithmetic" else record["digit"]
                assert digits.target[record["picture"]] == target
                np.testing.assert_array_equal(record["image"], np.rint(digits.images[record["picture"]] * 255 / 16))

    def test_recordings_are_complete_and_recognisable(self, stored):
        """A nearest-centroid classifier on coarse spectra, fitted on other voices, recognises most spoken digits."""

        def spectra(records):
            features = []
            for record in records:
                samples = record["audio"].astype(np.float32)
                samples = samples[np.flatnonzero(samples)[0] :]
                frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::128] * np.hanning(512)
                power = np.abs(np.fft.rfft(frames))[:, 4:132].reshape(len(frames), 16, 8).mean(axis=2)
                power = np.log(power + 1)
                places = np.linspace(0, len(power) - 1, 8).round().astype(int)
                features.append((power[places] - power.mean(axis=0)).ravel())
            return np.array(features)

        train, test = stored["matched", "train"][:1500], stored["matched", "test"]
        labels = np.array([record["digit"] for record in train])
        features = spectra(train)
        centroids = np.array([features[labels == digit].mean(axis=0) for digit in range(10)])
        distances = ((spectra(test)[:, None] - centroids) ** 2).sum(axis=2)
        assert np.mean(distances.argmin(axis=1) == [record["digit"] for record in test]) > 0.7
        for records in stored.values():
            for record in records:
                assert 1_600 < len(record["audio"]) <= 16_000
                # A truncated word would end loudly; a few voices end abruptly by themselves.
                assert np.abs(record["audio"][-8:].astype(int)).max() < 0.4 * np.abs(record["audio"].astype(int)).max()

    def test_records_suit_their_modalities(self, datasets):
        for task, dataset in datasets.items():
            record = dataset.source("validation")[3]
            assert set(record.inputs) == set(dataset.inputs) and set(record.targets) == set(dataset.targets)
            assert record.inputs["image"].shape == (8, 8) and record.inputs["image"].dtype == np.uint8
            assert record.inputs["audio"][0].dtype == np.int16 and record.inputs["audio"][1] == 16_000
            assert isinstance(record.inputs["text"], str)
            assert set(dataset.ceilings("test")) <= set(dataset.targets), task

    def test_sources_survive_the_way_to_another_process(self, datasets):
        source = datasets["matched"].source("test")
        before = source.stored(5)
        # Pickling passes objects between processes of one run; no file is read this way.
        after = pickle.loads(pickle.dumps(source)).stored(5)
        assert before["key"] == after["key"]

    def test_an_unknown_split_is_a_user_error(self, datasets):
        with pytest.raises(UserError, match="did you mean 'test'"):
            datasets["matched"].source("tset")

    def test_missing_fractions_hold_and_one_input_always_remains(self, digits_cache):
        missing_fraction = {"image": 0.5, "audio": 0.5, "text": 0.5, "digit": 0.3}
        dataset = Digits(Digits.Config(task="matched", cache=str(digits_cache), missing_fraction=missing_fraction))
        source = dataset.source("train")
        records = [source[index] for index in range(1000)]
        present = np.array(
            [[record.inputs[name] is not None for name in ("image", "audio", "text")] for record in records]
        )
        assert present.any(axis=1).all()
        # 1/8 of the examples would lose all inputs and keep one of three instead: 1/2 + 1/24.
        np.testing.assert_allclose(present.mean(axis=0), 1 / 2 + 1 / 24, atol=0.05)
        assert np.mean([record.targets["digit"] is None for record in records]) == pytest.approx(0.3, abs=0.05)
        again = [source[index].inputs["image"] is not None for index in range(1000)]
        assert again == present[:, 0].tolist()
        assert all(raw is not None for raw in dataset.source("test")[0].inputs.values())

    def test_two_processes_prepare_one_cache_and_get_the_records_of_every_other_cache(self, datasets, tmp_path):
        code = (
            "import sys, time; from mmjax.datasets import Digits\n"
            "digits = Digits(Digits.Config(task='matched', cache=sys.argv[1])); digits.prepare()\n"
            "print(digits.checksum, len(digits.source('train')))"
        )
        processes = [run(code, tmp_path) for _ in range(2)]
        results = [process.communicate(timeout=240)[0].split() for process in processes]
        assert results == [[datasets["matched"].checksum, "4000"]] * 2
        folder = tmp_path / "digits" / "matched"
        assert sorted(path.name for path in folder.iterdir()) == ["1.0.0", "1.0.0.lock"]

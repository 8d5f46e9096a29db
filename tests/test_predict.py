"""`mmjax predict` on typical user files, from the workdir alone."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import struct

import numpy as np
import PIL.Image
import pytest
import scipy.signal
import tokenizers

from mmjax.__main__ import main
from mmjax.datasets.digits.arithmetic import WORDS
from mmjax.datasets.digits.digits import Digits
from mmjax.evaluation.predictor import Predictor, read_inputs
from mmjax.runs.run import restore

ENOUGH = 8
"""Minimum of correct predictions in ten; the model's accuracy on each input alone is above 0.95."""


def write_wav(path: pathlib.Path, samples: np.ndarray, rate: int, bits: int) -> pathlib.Path:
    """Writes mono PCM of 8 or 24 bits; full scale is 1."""
    if bits == 8:
        data = np.rint(samples * 127 + 128).astype(np.uint8).tobytes()
    else:
        data = np.rint(samples * (2**23 - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    step = bits // 8
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * step, step, bits)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


TEXT_ONLY = """
from tests import matched_recipe

def get_config(tokenizer):
    config = matched_recipe.get_config(tokenizer)
    config.data.modality_dropout = {}
    config.model = {"encoders": {"text": {"kind": "text_transformer", "width": 16, "depth": 1, "heads": 2}}}
    config.tasks = {"digit": {"kind": "classification", "reads": "encoders.text"}}
    config.schedule.warmup = 0
    config.train.steps = 2
    config.evaluate.splits = []
    return config
"""


@dataclasses.dataclass(frozen=True)
class Example:
    """A digit as a drawing, a recording and a word."""

    digit: str
    image: str
    audio: str
    text: str


@pytest.fixture(scope="module")
def examples(digits_cache, tmp_path_factory) -> list[Example]:
    """Ten unseen examples in other forms: dark ink on a large sheet, 44.1 kHz with silence around, capital letters."""
    folder, source = tmp_path_factory.mktemp("files"), Digits(Digits.Config(task="matched", cache=str(digits_cache)))
    records = source.source("test")
    made = []
    for number in range(10):
        record = records[30 + number * 91]
        digit = int(record.targets["digit"])
        drawn = PIL.Image.fromarray(record.inputs["image"]).resize((120, 120), PIL.Image.Resampling.BICUBIC)
        sheet = np.pad(255 - np.asarray(drawn), ((40, 90), (60, 60)), constant_values=255)
        PIL.Image.fromarray(sheet).save(folder / f"{number}.png")
        samples, rate = record.inputs["audio"]
        waveform = scipy.signal.resample_poly(samples / 2**15, 44_100 // 100, rate // 100)
        waveform = np.pad(0.5 * waveform / np.abs(waveform).max(), (15_000, 20_000))
        bits = 8 if number % 2 else 24
        audio = write_wav(folder / f"{number}.wav", waveform, 44_100, bits)
        made.append(Example(str(digit), str(folder / f"{number}.png"), str(audio), f"number {WORDS[digit]}"))
    return made


@pytest.fixture(scope="module")
def predict(trained_run):
    """Function from arguments to predictions, which restores the run once."""
    experiment, state = restore(trained_run)
    predictor = Predictor(experiment.objective, experiment.mesh, experiment.targets)
    return lambda **arguments: predictor.run(state.eval_parameters, read_inputs(experiment.modalities, arguments))


def printed(capsys, *words: str) -> str:
    assert main(["predict", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("names", [("image",), ("audio",), ("text",), ("image", "audio"), ("image", "audio", "text")])
def test_drawings_recordings_and_sentences_are_answered_right(predict, examples, names):
    right = 0
    for example in examples:
        answers = predict(**{name: getattr(example, name) for name in names})
        right += answers["digit"]["answer"] == example.digit
    assert right >= ENOUGH


def test_tasks_without_any_of_their_inputs_give_no_answer(predict, examples):
    example = examples[0]
    assert set(predict(image=example.image)) == {"digit", "seen"}
    assert set(predict(audio=example.audio)) == {"digit", "heard"}
    assert set(predict(text=example.text)) == {"digit"}
    assert set(predict(image=example.image, audio=example.audio)) == {"digit", "seen", "heard"}


def test_an_absent_input_is_absent_and_not_an_empty_one(predict, examples):
    assert predict(image=examples[0].image)["digit"] != predict(image=examples[0].image, text="")["digit"]


def test_the_command_prints_answers_without_the_dataset(capsys, monkeypatch, tmp_path, trained_run, examples, predict):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "nothing"))
    example = examples[1]
    words = [f"--workdir={trained_run}", f"--image={example.image}", "--audio", example.audio, f"--text={example.text}"]
    expected = predict(image=example.image, audio=example.audio, text=example.text)
    lines = printed(capsys, *words).splitlines()
    assert [line.split()[:2] for line in lines] == [[task, answer["answer"]] for task, answer in expected.items()]
    assert f"probability {expected['digit']['probability']:.3f}" in lines[0]
    assert not (tmp_path / "nothing").exists()


def test_json_is_one_object_on_standard_output(capsys, trained_run, examples, predict):
    words = [f"--workdir={trained_run}", "--input", f"audio={examples[2].audio}", "--json"]
    answers = json.loads(printed(capsys, *words))
    assert answers == predict(audio=examples[2].audio)
    top = answers["digit"]["top"]
    assert len(top) == 5 and sum(row["probability"] for row in top) <= 1 + 1e-6
    assert top[0] == {key: answers["digit"][key] for key in ("answer", "probability")}
    assert [row["probability"] for row in top] == sorted((row["probability"] for row in top), reverse=True)


def test_help_names_the_inputs_of_the_run_and_is_there_without_one(capsys, trained_run):
    assert main(["predict", "--help"]) == 0
    assert "--input=" in capsys.readouterr().out
    assert main(["predict", f"--workdir={trained_run}", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name}=STRING" in out for name in ("image", "audio", "text"))


def test_silence_and_a_constant_picture_are_answered_with_a_warning(capsys, trained_run, tmp_path):
    PIL.Image.fromarray(np.full((20, 30), 90, np.uint8)).save(tmp_path / "grey.png")
    write_wav(tmp_path / "quiet.wav", np.zeros(4000), 8000, 24)
    words = [f"--workdir={trained_run}", f"--image={tmp_path / 'grey.png'}", f"--audio={tmp_path / 'quiet.wav'}"]
    assert main(["predict", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["digit"]["answer"]
    lines = sorted(err.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith("warning: --audio: silent, peak level is -120 dBFS; ")
    assert lines[1].startswith("warning: --image: blank, grey levels span only 0.0 of 255; ")


def test_two_values_of_an_input_are_refused_instead_of_the_first_being_lost(capsys, trained_run, examples):
    run, first, second = f"--workdir={trained_run}", examples[0].image, examples[1].image
    for words in (
        [f"--image={first}", f"--image={second}"],
        [f"--image={first}", "--input", f"image={second}"],
        ["--input", f"image={first}", "--input", f"image={second}"],
        ["--text=one", "--text", "two"],
    ):
        assert main(["predict", run, *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and ("once" in err or "twice" in err), err


def test_preprocessing_is_that_of_the_workdir(tmp_path, trained_run, examples, predict):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["inputs"]["image"]["crop"] = "none"
    (workdir / "config.json").write_text(json.dumps(config))
    experiment, state = restore(workdir)
    predictor = Predictor(experiment.objective, experiment.mesh, experiment.targets)
    inputs = read_inputs(experiment.modalities, {"image": examples[0].image})
    assert predictor.run(state.eval_parameters, inputs)["digit"] != predict(image=examples[0].image)["digit"]


def test_the_original_tokenizer_is_not_needed_after_training(capsys, monkeypatch, digits_cache, tmp_path):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    vocabulary = {word: number for number, word in enumerate(["?", "number", "digit", "the", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    original, workdir = tmp_path / "words.json", tmp_path / "run"
    tokenizer.save(str(original))
    (tmp_path / "recipe.py").write_text(TEXT_ONLY)
    train = ["train", f"--config={tmp_path / 'recipe.py'}:{original}", f"--workdir={workdir}"]
    assert main(train) == 0
    capsys.readouterr()
    copy = workdir / "preprocessing" / "text" / "words.json"
    assert copy.read_bytes() == original.read_bytes()
    asked = [f"--workdir={workdir}", "--text=number seven", "--json"]
    before = printed(capsys, *asked)

    # Resuming would mix two tokenizers.
    original.write_text(original.read_text().replace('"seven"', '"siebn"'))
    assert main([*train, "--config.train.steps=3"]) == 2
    assert "has changed since the run started" in capsys.readouterr().err
    original.unlink()
    assert printed(capsys, *asked) == before

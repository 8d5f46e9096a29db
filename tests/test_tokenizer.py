"""Tokenizers trained during preparation: from the training split alone, deterministic, without loss."""

from __future__ import annotations

import csv
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import tokenizers

from mmjax.errors import UserError
from mmjax.experiment import Experiment
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "said", "kind", "split"])
        for number in range(120):
            split = "train" if number % 3 else "test"
            secret = "zweihundertachtzig" if split == "test" else "seventy seventeen"
            said = f"number {number**3 % 1009}: {secret} words are spoken here, naïvely — 日本 {number * 7}"
            writer.writerow([number, said, "ab"[number % 2], split])
    return folder / "data.csv"


def texts(source: pathlib.Path, split: str) -> list[str]:
    with source.open(newline="") as file:
        return [row["said"] for row in csv.DictReader(file) if row["split"] == split]


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> pathlib.Path:
    config = PrepareConfig(source=str(source), train_tokenizer=400, keep=("duplicate",))
    return prepare(config, tmp_path_factory.mktemp("out") / "data", Local(1)).folder


def test_what_is_encoded_can_be_decoded(source, prepared):
    tokenizer = tokenizers.Tokenizer.from_file(str(prepared / "tokenizers" / "said.json"))
    for text in (*texts(source, "test")[:10], "  never seen:\tÄ ﷽ 🙂\n", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    training = texts(source, "train")
    assert sum(len(tokenizer.encode(text).ids) for text in training) < 0.5 * sum(len(t.encode()) for t in training)


def test_the_vocabulary_has_words_of_the_training_split_only(source, prepared):
    tokenizer = tokenizers.Tokenizer.from_file(str(prepared / "tokenizers" / "said.json"))
    pieces = {
        name: len(tokenizer.encode(word).ids) for name, word in (("test", "zweihundertachtzig"), ("train", " seventy"))
    }
    assert pieces["train"] == 1 and pieces["test"] > 6
    facts = json.loads((prepared / "manifest.json").read_text())["tokenizers"]["said"]
    assert facts["vocabulary"] == tokenizer.get_vocab_size() <= 400
    assert facts["longest"] == max(len(tokenizer.encode(text).ids) for text in texts(source, "train"))


def test_the_recipe_uses_it(source, prepared):
    config = importlib.import_module("configs.prepared").get_config(str(prepared))
    assert config.data.inputs.said.tokenizer == str(prepared / "tokenizers" / "said.json")
    modality = Experiment(config).modalities["said"]
    tokenizer = tokenizers.Tokenizer.from_file(str(prepared / "tokenizers" / "said.json"))
    text = texts(source, "train")[0]
    values, mask = modality.process(text)
    assert values[mask].tolist() == [*tokenizer.encode(text).ids, modality.end]


def test_other_processes_and_workers_train_the_same(source, prepared, tmp_path):
    command = [sys.executable, "-m", "mmjax", "prepare", f"--source={source}", f"--output={tmp_path / 'data'}"]
    command += ["--train_tokenizer=400", "--keep=duplicate", "--workers=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "true"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    name = pathlib.Path("tokenizers") / "said.json"
    assert (tmp_path / "data" / name).read_bytes() == (prepared / name).read_bytes()


def test_missing_text_or_too_small_a_vocabulary_is_one_line(source, tmp_path):
    config = PrepareConfig(source=str(source), columns={"kinds": "kind:table"}, train_tokenizer=400)
    with pytest.raises(UserError, match="no input is of kind text"):
        prepare(config, tmp_path / "out", Local(1))
    with pytest.raises(ValueError, match="must exceed the 256 byte tokens; give for example 4000"):
        PrepareConfig(source=str(source), train_tokenizer=100)

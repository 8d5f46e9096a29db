"""Command lines with impossible paths, numbers, names and ports: one line, exit code 2, and no traceback."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from mmjax.__main__ import main
from mmjax.config import parse_literal
from tests.fuzz_targets import recipe

ROOT = pathlib.Path(__file__).parents[1]
LONG, DIGITS, DEEP = "x" * 300, "9" * 400, "-" * 5000 + "1"
PREPARE, TRAIN = ("prepare", "--source=in.csv"), ("train", "--config=recipe.py")
PROCESSES = (*TRAIN, "--workdir=w", "--process_count=2", "--process_id=1")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({recipe()!r})\n"
    (tmp_path / "recipe.py").write_text(text)
    (tmp_path / "in.csv").write_text("note,kind\n" + "".join(f"words about {n * n},{'ab'[n % 2]}\n" for n in range(6)))
    os.mkfifo(tmp_path / "pipe.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("init", "digits", "--output=/proc/x"), "'/proc/x': No such file or directory"),
        (("init", "digits", "--output=~nobody_at_all/x"), "the home folder '~nobody_at_all' is unknown"),
        (("init", "digits", f"--output={LONG}"), "File name too long"),
        (("init", "digits", "--output=a\0b"), "contains a null byte"),
        (("init", DIGITS), "unknown recipe"),
        ((*PREPARE, "--output=/proc/x"), "cannot write '/proc/x.partial'"),
        ((*PREPARE, f"--output={LONG}"), "File name too long"),
        ((*PREPARE, "--output=a\0b"), "contains a null byte"),
        ((*PREPARE, "--output=/dev/null/x"), "Not a directory"),
        ((*PREPARE, "--output=o", "--folds=1000000000000"), "folds: 1000000000000 is out of range"),
        ((*PREPARE, "--output=o", "--workers=100000000"), "--workers: 100000000 is out of range"),
        ((*PREPARE, "--output=o", f"--train_tokenizer={10**12}"), "train_tokenizer: 1000000000000 is out of range"),
        ((*PREPARE, "--output=o", "--set=splits={1: 2}"), "the key 1 is an int; give strings as keys"),
        ((*PREPARE, "--output=o", f"--set=checks.image.blank={DEEP}"), "is a str; give a number"),
        (("prepare", "--source=pipe.csv", "--output=o"), "not a regular file"),
        (("prepare", "--source=/dev/zero", "--output=o"), "does not exist or has an unknown format"),
        (("prepare", "--source=a\0b", "--output=o"), "does not exist or has an unknown format"),
        (("prepare", f"--source={LONG}.csv", "--output=o"), "no file"),
        (("prepare", "--source=nostore://x/y.csv", "--output=o"), "Protocol not known"),
        (("prepare", f"--config={DIGITS}"), "does not exist"),
        (("prepare", "--config=a\0b.py"), "contains a null byte"),
        (("plan", "--config=recipe.py", "--examples=nan"), "--examples: nan is not finite"),
        (("plan", "--config=recipe.py", "--topology=v5e:2x2", "--num_slices=1000000000"), "range [1, 4096]"),
        (("plan", "--config=recipe.py", f"--batch_per_chip={DIGITS}"), "train.batch_size: 7999"),
        (("plan", "--config=recipe.py", "--" + "[" * 3000), "the name of a flag has more than 200 characters"),
        (("evaluate", "--workdir=/proc/x"), "contains no run"),
        (("evaluate", f"--workdir={LONG}"), "contains no run"),
        (("evaluate", "--workdir=a\0b"), "contains a null byte"),
        (("evaluate", "--workdir="), "is an empty path"),
        (("predict", "--workdir=/proc/self", "--image=x"), "contains no run"),
        (("reproduce", LONG), "File name too long"),
        (("reproduce", "a\0b"), "contains a null byte"),
        ((*TRAIN, f"--workdir={LONG}"), "File name too long"),
        ((*TRAIN, "--workdir=a\0b"), "contains a null byte"),
        ((*TRAIN, "--workdir=/proc/x"), "/proc/x cannot be written"),
        ((*TRAIN, "--workdir=/dev/null/x"), "/dev/null is a file"),
        ((*TRAIN, "--workdir=w", f"--config.schedule.peak={DIGITS}"), "int too large to convert to float"),
        ((*TRAIN, "--workdir=w", f"--config.train.steps={DEEP}"), "is not a number"),
        ((*TRAIN, "--workdir=w", f"--config.tasks.label.weight={10**300}0000000000"), "too large to convert"),
        ((*PROCESSES, "--coordinator=localhost:99999"), "'localhost:99999' is not an address"),
        ((*PROCESSES, "--coordinator=localhost:²"), "is not an address"),
        ((*PROCESSES, "--coordinator=:80"), "is not an address"),
        ((*PROCESSES, "--coordinator=h\0st:80"), "is not an address"),
        ((*PROCESSES, f"--coordinator={LONG}:80"), "is not an address"),
        ((*PROCESSES, "--coordinator=h:1", f"--process_count={10**12}"), "--process_count: 1000000000000 is not valid"),
    ],
)
def test_impossible_arguments_are_one_line(capsys, folder, words, expected):
    before = sorted(folder.rglob("*"))
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert expected in err and err.startswith("mmjax: error: ") and err.count("\n") == 1 and "; " in err
    assert out == "" and [path for path in sorted(folder.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize("text", ["[" * 3000, DEEP, "{[]: 1}", "\0", "9" * 5000, "x", ""])
def test_texts_that_are_no_literals_raise_value_errors(text):
    with pytest.raises(ValueError, match="is not a literal"):
        parse_literal(text)


def test_an_undecodable_name_is_printed_with_escapes(folder):
    words = [os.fsencode(sys.executable), b"-m", b"mmjax", b"init", b"digits", b"--output=a\xff"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(words, capture_output=True, env=environment)
    assert result.returncode == 0 and result.stdout.split() == [b"a\\udcff/digits.py"], result.stderr
    assert (folder / os.fsdecode(b"a\xff") / "digits.py").exists()

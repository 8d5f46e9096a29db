"""A share of the fuzz test, and the faults that it must notice."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mmjax.errors import UserError
from tests import fuzz, fuzz_inputs, fuzz_targets

FILE = pathlib.Path(fuzz.__file__)


def test_wrong_inputs_end_in_a_record_a_finding_or_one_line():
    command = [sys.executable, str(FILE), "--count=250", "--seed=1", "--workers=2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=FILE.parents[1])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "250 inputs, 0 failures" in result.stdout
    assert all(name in result.stdout for name in fuzz_targets.TARGETS)


@pytest.mark.slow
def test_three_thousand_wrong_inputs():
    """About 20 minutes on two cores: pytest -m slow tests/test_fuzz.py."""
    subprocess.run([sys.executable, str(FILE), "--count=3000", "--seed=0"], check=True, cwd=FILE.parents[1])


def test_an_input_depends_on_the_seed_and_its_number_only():
    names = list(fuzz_targets.TARGETS)
    draws = [(name, rng.random()) for name, rng in (fuzz.choose_target(3, case, names) for case in (0, 1, 2, 0))]
    assert draws[0] == draws[3] and len(set(draws)) == 3
    assert fuzz.choose_target(4, 0, names)[1].random() != draws[0][1]


def test_the_unchanged_files_are_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_inputs, "mutate", lambda rng, data, *_: data)
    for index, (kind, name, _) in enumerate(fuzz_targets.corpus()):
        (tmp_path / str(index)).mkdir()
        monkeypatch.setattr(fuzz_targets, "corpus", lambda index=index: [CORPUS[index]])
        outcome = fuzz_targets.files(np.random.default_rng(0), tmp_path / str(index))
        assert outcome == ("refused" if name.endswith(".npz") else "accepted"), (kind, name)


CORPUS = fuzz_targets.corpus()


def refuse(rng, folder):
    raise UserError("where", "problem", "remedy")


def write_outside(rng, folder):
    (folder.parent / "escaped").write_text("")
    return "accepted"


def hold(rng, folder):
    assert len(b"x" * 2**22) == 2**22
    return "accepted"


def work_long(rng, folder):
    total = 0
    for number in range(10**6):
        total += number
    return "accepted"


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        (lambda rng, folder: "refused", "refused"),
        (refuse, "UserError: where: problem; remedy at "),
        (lambda rng, folder: {}["x"], "KeyError: 'x' at "),
        (write_outside, "wrote outside of its folder: ['escaped']"),
        (hold, "held "),
        (work_long, "took "),
    ],
)
def test_each_kind_of_failure_is_noticed(tmp_path, monkeypatch, target, outcome):
    monkeypatch.setattr(fuzz_targets, "TARGETS", {"fake": (1.0, target)})
    monkeypatch.setattr(fuzz, "MAX_BYTES", 0 if target is hold else 2**40)
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.001 if target is work_long else 1e9)
    result = fuzz.try_case(0, 0, ["fake"], tmp_path)
    assert result.outcome.startswith(outcome) and result.failed == (outcome != "refused")


class Silent:
    """A worker that has waited and worked for some seconds without an answer."""

    case, since, cpu_before = 5, 0.0, 10.0

    def __init__(self, cpu_seconds: float):
        self.cpu_seconds = cpu_seconds


@pytest.mark.parametrize(
    ("waited", "worked", "problem"),
    [(10, 5, ""), (100, 29, ""), (100, 31, "hung after 31 s of processor time"), (200, 0, "hung for 200 s")],
)
def test_a_worker_that_hangs_is_replaced(monkeypatch, waited, worked, problem):
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: float(waited))
    assert fuzz.Worker.problem(Silent(10.0 + worked)) == problem

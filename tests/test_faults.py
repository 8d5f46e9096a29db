"""The short form of `benchmarks/faults.py`, and the table that its long form wrote."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import re
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        names = ("faults", "fault_injection.catalogue", "fault_injection.trial", "fault_injection.strikes")
        yield {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_runs_that_are_struck_end_like_one_that_was_not(tmp_path):
    command = [sys.executable, "benchmarks/faults.py", "--quick", f"--work={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("3 faults, 3 as expected\n")
    # A repeated command keeps the rows.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3 faults, 3 as expected\n")


def test_the_table_has_a_row_for_each_fault_and_all_ended_equal(modules):
    rows = [line.split(" | ") for line in modules["faults"].TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    catalogue = modules["catalogue"].faults([0, 1])
    assert len(rows) == len(catalogue) == len({fault.key for fault in catalogue}) >= 60
    for row, fault in zip(rows, catalogue, strict=True):
        assert row[0] == f"| {fault.name}" and row[1] == fault.when
        assert row[-1] == ("untouched |" if fault.untouched else "yes |"), row
    assert {fault.processes for fault in catalogue} == {1, 2}


@pytest.mark.parametrize(
    "codes, output, found",
    [
        ([3], "mmjax: stopped; run the same command", []),
        ([1], "mmjax: stopped; run the same command", ["process 0 ended with 1, not 3"]),
        ([None], "run the same command", ["process 0 ended with None, not 3"]),
        ([3], "mmjax: stopped", ["process 0 does not say 'run the same command'"]),
        ([3], "Traceback (most recent call last)\nrun the same command", ["process 0 printed a traceback"]),
    ],
)
def test_an_ending_that_differs_from_the_catalogue_is_a_problem(modules, codes, output, found):
    fault = modules["trial"].Fault(name="SIGTERM", codes=((3,),), says="run the same command")
    assert modules["trial"].check(fault, codes, [output]) == found
    two = dataclasses.replace(fault, processes=2, codes=((3,), (-signal.SIGKILL,)), says="process 1")
    assert modules["trial"].check(two, [3, -signal.SIGKILL], ["mmjax: process 1", ""]) == []
    assert modules["trial"].check(two, [3, 3], ["mmjax: process 1", ""]) != []


def test_a_flipped_bit_is_one_bit(modules):
    data = bytes(range(200))
    changed = modules["strikes"].flip_bit(data)
    assert sum((a ^ b).bit_count() for a, b in zip(data, changed, strict=True)) == 1


def test_the_last_line_is_the_one_about_the_end(modules):
    last_line = modules["trial"].last_line
    assert last_line("step 3/16  loss 1\nmmjax: error: x: y; z\n  results  a/result.json\n") == "mmjax: error: x: y; z"
    assert last_line("step 3/16  loss 1.0\n└───┘\n") == "step 3/16" and last_line("└───┘\n") == ""
    assert re.fullmatch(r"\| a \| b \| 1 \| SIGKILL \| c \\\| d \| 4 \| yes \|\n", modules["faults"].format_row(
        {"fault": "a", "moment": "b", "processes": 1, "codes": [-9], "last line": "c | d", "notes": [], "resumed": 4,
         "equal": "yes"}
    ))  # fmt: skip

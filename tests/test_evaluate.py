"""`mmjax evaluate` reproduces the metrics of training, and evaluates with inputs removed."""

from __future__ import annotations

import json

import pytest

from mmjax.__main__ import main


@pytest.fixture(autouse=True)
def cache(monkeypatch, digits_cache):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))


def evaluated(capsys, *words: str) -> dict:
    assert main(["evaluate", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_subsets_match_those_of_training(capsys, trained_run):
    recorded = json.loads((trained_run / "result.json").read_text())
    found = evaluated(capsys, f"--workdir={trained_run}", "--subsets")
    assert found["step"] == 300 and found["ceilings"] == recorded["ceilings"]
    assert found["subsets"]["test"].keys() == recorded["subsets"]["test"].keys()
    for subset, row in recorded["subsets"]["test"].items():
        # Trained on one device, evaluated on eight: rounding may move an example across the decision boundary.
        assert found["subsets"]["test"][subset] == pytest.approx(row, abs=0.003)


def test_a_split_can_be_measured_without_some_inputs(capsys, trained_run):
    recorded = json.loads((trained_run / "result.json").read_text())["subsets"]["test"]
    found = evaluated(capsys, f"--workdir={trained_run}", "--split=test", "--without=text,audio")
    assert found["without"] == ["audio", "text"]
    assert found["test"] == pytest.approx(recorded["image"], abs=0.003)
    assert "heard/accuracy" not in found["test"]


def test_tables_show_every_metric(capsys, trained_run):
    assert main(["evaluate", f"--workdir={trained_run}", "--split=validation", "--without=audio"]) == 0
    out = capsys.readouterr().out
    assert "validation, step 300, with image+text" in out
    assert "digit/accuracy" in out and "digit/f1" in out and "heard/accuracy" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--split=tset"], "--split: unknown split 'tset'; did you mean 'test'?"),
        (["--without=adio"], "--without: the run has no input 'adio'; did you mean 'audio'?"),
        (["--without=audio,image,text"], "masks all inputs"),
        (["--without=audio", "--subsets"], "--without: cannot be combined with --subsets"),
    ],
)
def test_unknown_splits_and_inputs_are_refused(capsys, trained_run, words, expected):
    assert main(["evaluate", f"--workdir={trained_run}", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and err.count("\n") == 1

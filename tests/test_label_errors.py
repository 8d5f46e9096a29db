"""Labels that are probably wrong: the prediction of each row without itself, and what follows from it."""

from __future__ import annotations

import types

import numpy as np
import pytest

from mmjax.data.prepare import left_out
from mmjax.data.prepare.checks import labels as labels_check
from mmjax.data.prepare.checks.labels import label_error, suspicions
from mmjax.data.prepare.kinds.base import Kind
from mmjax.data.prepare.left_out import LeftOut


def test_a_row_is_predicted_as_if_it_had_not_been_there():
    draws = np.random.default_rng(0)
    features, targets = draws.normal(size=(40, 3)).astype(np.float32), draws.normal(size=(40, 2))
    teaches = draws.uniform(size=40) < 0.8
    found = LeftOut(features).predict(targets, teaches)
    scaled = (features - features.mean(axis=0)).astype(np.float64) / np.sqrt(features.var(axis=0).sum())
    kernel = np.exp(-np.square(scaled[:, None] - scaled).sum(axis=2))
    mean = targets[teaches].mean(axis=0)
    for row in range(40):
        others = np.flatnonzero(teaches & (np.arange(40) != row))
        among = kernel[np.ix_(others, others)] + left_out._RIDGE * np.eye(len(others))
        expected = mean + kernel[row, others] @ np.linalg.solve(among, targets[others] - mean)
        np.testing.assert_allclose(found[row], expected, atol=2e-3)


def test_some_rows_stand_for_many(monkeypatch):
    draws = np.random.default_rng(0)
    features = draws.uniform(-2, 2, size=(600, 1))
    targets = np.sin(2 * features)
    exact = LeftOut(features).predict(targets, np.ones(600, bool))
    monkeypatch.setattr(left_out, "_LANDMARKS", 60)
    monkeypatch.setattr(left_out, "_BLOCK", 100)
    quick = LeftOut(features).predict(targets, np.ones(600, bool))
    np.testing.assert_allclose(quick, exact, atol=2e-2)
    assert np.abs(exact - targets).mean() < 0.05


def classes_of(rows: int, seed: int = 0) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Generator, true classes of three, and features that tell them apart."""
    draws = np.random.default_rng(seed)
    truth = np.arange(rows) % 3
    return draws, truth, draws.normal(size=(rows, 5)) + 6 * np.eye(5)[truth]


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_wrong_labels_are_suspected_and_right_ones_are_not(share):
    draws, truth, telling = classes_of(300)
    wrong = draws.choice(300, int(300 * share), replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + draws.integers(1, 3, len(wrong))) % 3
    # Another input says nothing, and a third one tells classes apart and is often absent.
    there = draws.uniform(size=300) < 0.5
    everywhere = np.ones(300, bool)
    noise = draws.normal(size=(300, 8))
    other = (draws.normal(size=(300, 4)) + 5 * np.eye(4)[truth])[there]
    found, probabilities = suspicions([(everywhere, noise), (everywhere, telling), (there, other)], labels, 3)
    suspected = set(np.flatnonzero(found > 0.5).tolist())
    assert len(suspected & set(wrong.tolist())) >= 0.95 * max(len(suspected), len(wrong))
    assert (probabilities.argmax(axis=1) == truth).mean() > 0.98
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_class_that_is_time_and_again_taken_for_another_is_suspected(seed):
    draws = np.random.default_rng(seed)
    truth = np.arange(1000) % 5
    features = draws.normal(size=(1000, 8)) + 6 * np.eye(8)[truth]
    labels = truth.copy()
    wrong = set(draws.choice(np.flatnonzero(truth == 3), 40, replace=False).tolist())
    labels[list(wrong)] = 1
    found, _ = suspicions([(np.ones(1000, bool), features)], labels, 5)
    suspected = set(np.flatnonzero(found > labels_check._SUSPECTED).tolist())
    assert len(suspected & wrong) >= 0.9 * max(len(suspected), len(wrong))


def test_rows_that_were_given_a_rare_class_are_suspected():
    draws = np.random.default_rng(1)
    truth = (np.arange(400) % 20 == 0).astype(int)
    features = draws.normal(size=(400, 2)) + 12 * np.eye(2)[truth]
    labels = truth.copy()
    labels[[3, 7, 11]] = 1 - labels[[3, 7, 11]]
    found, _ = suspicions([(np.ones(400, bool), features)], labels, 2)
    assert np.flatnonzero(found > 0.5).tolist() == [3, 7, 11]


@pytest.mark.parametrize("case", ["no label is wrong", "nothing tells the label"])
def test_nothing_is_suspected_where(case):
    draws, truth, features = classes_of(300, seed=2)
    labels = draws.permutation(truth) if case == "nothing tells the label" else truth
    assert suspicions([(np.ones(300, bool), features)], labels, 3)[0].max() < 0.5


def test_rows_that_come_class_by_class_are_judged_in_parts_of_all_classes(monkeypatch):
    draws, truth, telling = classes_of(300)
    order = np.argsort(truth, kind="stable")
    truth, telling = truth[order], telling[order]
    wrong = draws.choice(300, 12, replace=False)
    names = [f"class {name}" for name in truth]
    for row in wrong:
        names[row] = f"class {(truth[row] + 1) % 3}"
    column = types.SimpleNamespace(name="label")
    inputs, kinds = [types.SimpleNamespace(name="telling")], {"telling": Kind()}
    job = types.SimpleNamespace(rows=300, targets=[column], inputs=inputs, kinds=kinds)
    examined = types.SimpleNamespace(
        numbers={"telling": {}},
        words={"telling": {}},
        job=job,
        alive=np.ones(300, bool),
        classes=lambda name: names,
        features=lambda name: (np.arange(300), telling),
    )
    monkeypatch.setattr(labels_check, "_MOST", 75)
    found = {finding.row for finding in label_error(examined)}
    assert len(found & set(wrong.tolist())) >= 11 and len(found) <= 13

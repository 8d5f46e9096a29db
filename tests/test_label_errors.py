"""Detection of probable label errors from leave-one-out predictions of each row."""

from __future__ import annotations

import csv
import json
import types

import numpy as np
import pytest

from mmjax.prepare import leave_one_out
from mmjax.prepare.checks import labels as labels_check
from mmjax.prepare.checks.labels import label_error, label_error_posterior
from mmjax.prepare.kinds.base import Kind
from mmjax.prepare.leave_one_out import LeaveOneOutRidge
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local


def test_leave_one_out_matches_refitting_without_the_row():
    draws = np.random.default_rng(0)
    features, targets = draws.normal(size=(40, 3)).astype(np.float32), draws.normal(size=(40, 2))
    train_mask = draws.uniform(size=40) < 0.8
    found = LeaveOneOutRidge(features).predict(targets, train_mask)
    scaled = (features - features.mean(axis=0)).astype(np.float64) / np.sqrt(features.var(axis=0).sum())
    kernel = np.exp(-np.square(scaled[:, None] - scaled).sum(axis=2))
    mean = targets[train_mask].mean(axis=0)
    for row in range(40):
        others = np.flatnonzero(train_mask & (np.arange(40) != row))
        among = kernel[np.ix_(others, others)] + leave_one_out._RIDGE * np.eye(len(others))
        expected = mean + kernel[row, others] @ np.linalg.solve(among, targets[others] - mean)
        np.testing.assert_allclose(found[row], expected, atol=2e-3)


def test_landmarks_approximate_all_rows(monkeypatch):
    draws = np.random.default_rng(0)
    features = draws.uniform(-2, 2, size=(600, 1))
    targets = np.sin(2 * features)
    exact = LeaveOneOutRidge(features).predict(targets, np.ones(600, bool))
    monkeypatch.setattr(leave_one_out, "_LANDMARKS", 60)
    monkeypatch.setattr(leave_one_out, "_BLOCK", 100)
    quick = LeaveOneOutRidge(features).predict(targets, np.ones(600, bool))
    np.testing.assert_allclose(quick, exact, atol=2e-2)
    assert np.abs(exact - targets).mean() < 0.05


def classes_of(rows: int, seed: int = 0) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Generator, true classes of three, and features that separate them."""
    draws = np.random.default_rng(seed)
    truth = np.arange(rows) % 3
    return draws, truth, draws.normal(size=(rows, 5)) + 6 * np.eye(5)[truth]


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_wrong_labels_are_suspected_and_right_ones_are_not(share):
    draws, truth, distinctive = classes_of(300)
    mislabelled = draws.choice(300, int(300 * share), replace=False)
    labels = truth.copy()
    labels[mislabelled] = (truth[mislabelled] + draws.integers(1, 3, len(mislabelled))) % 3
    # The second input is uninformative; the third separates the classes and is often absent.
    available = draws.uniform(size=300) < 0.5
    everywhere = np.ones(300, bool)
    noise = draws.normal(size=(300, 8))
    other = (draws.normal(size=(300, 4)) + 5 * np.eye(4)[truth])[available]
    found, probabilities = label_error_posterior(
        [(everywhere, noise), (everywhere, distinctive), (available, other)], labels, 3
    )
    suspected = set(np.flatnonzero(found > 0.5).tolist())
    assert len(suspected & set(mislabelled.tolist())) >= 0.95 * max(len(suspected), len(mislabelled))
    assert (probabilities.argmax(axis=1) == truth).mean() > 0.98
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_systematic_confusion_of_two_classes_is_suspected(seed):
    draws = np.random.default_rng(seed)
    truth = np.arange(1000) % 5
    features = draws.normal(size=(1000, 8)) + 6 * np.eye(8)[truth]
    labels = truth.copy()
    mislabelled = set(draws.choice(np.flatnonzero(truth == 3), 40, replace=False).tolist())
    labels[list(mislabelled)] = 1
    found, _ = label_error_posterior([(np.ones(1000, bool), features)], labels, 5)
    suspected = set(np.flatnonzero(found > labels_check._REPORT_POSTERIOR).tolist())
    assert len(suspected & mislabelled) >= 0.9 * max(len(suspected), len(mislabelled))


def test_rows_that_were_given_a_rare_class_are_suspected():
    draws = np.random.default_rng(1)
    truth = (np.arange(400) % 20 == 0).astype(int)
    features = draws.normal(size=(400, 2)) + 12 * np.eye(2)[truth]
    labels = truth.copy()
    labels[[3, 7, 11]] = 1 - labels[[3, 7, 11]]
    found, _ = label_error_posterior([(np.ones(400, bool), features)], labels, 2)
    assert np.flatnonzero(found > 0.5).tolist() == [3, 7, 11]


@pytest.mark.parametrize("case", ["no label is wrong", "nothing tells the label"])
def test_nothing_is_suspected_where(case):
    draws, truth, features = classes_of(300, seed=2)
    labels = draws.permutation(truth) if case == "nothing tells the label" else truth
    assert label_error_posterior([(np.ones(300, bool), features)], labels, 3)[0].max() < 0.5


@pytest.mark.parametrize("mislabelled", [0, 20])
def test_no_label_is_suspected_where_classes_overlap(mislabelled):
    """Overlapping classes: a row inside another class may be correct, so half of the reports would be wrong."""
    draws = np.random.default_rng(4)
    truth = np.arange(400) % 4
    features = draws.normal(size=(400, 4)) + 2 * np.eye(4)[truth]
    labels = truth.copy()
    labels[:mislabelled] = (truth[:mislabelled] + 1) % 4
    assert not label_error_posterior([(np.ones(400, bool), features)], labels, 4)[0].any()


def prepared_rows(folder, rows: list[dict], **options) -> tuple[dict, dict]:
    """Report, and {row index: label_error} of a table of numbers, texts and labels, or of the files that it names."""
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(PrepareConfig(source=str(folder / "data.csv"), **options), folder / "out", Local(1))
    report = json.loads((folder / "out" / "report.json").read_text())
    lines = (folder / "out" / "findings.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return report, {int(line["key"]): line for line in found if line["check"] == "label_error"}


def test_label_errors_of_a_table_are_found(tmp_path):
    draws, truth, _ = classes_of(300)
    mislabelled = set(draws.choice(300, 12, replace=False).tolist())
    rows = []
    for row, label in enumerate(truth):
        size, colour = 100 + 40 * (label == 1) + draws.normal(), ["red", "green"][int(label == 2)]
        shown = (label + 1) % 3 if row in mislabelled else label
        rows.append({"size": f"{size:.1f}" if row % 9 else "NA", "colour": colour, "what": "abc"[shown]})
    columns = {"facts": "size+colour:table", "what": "what:label"}
    report, found = prepared_rows(tmp_path, rows, columns=columns)
    known = {row for row in mislabelled if row % 9}
    assert len(known & set(found)) >= 0.9 * len(known) and len(set(found) - mislabelled) <= 1
    assert "label_error" not in report["not_judged"]


@pytest.mark.parametrize("kind", ["series", "points", "video"])
def test_label_errors_of_series_clouds_and_clips_are_found(tmp_path, kind):
    draws, truth, _ = classes_of(180)
    mislabelled = set(draws.choice(180, 10, replace=False).tolist())
    moments, rows = np.linspace(0, 1, 100), []
    for row, label in enumerate(truth):
        if kind == "series":
            values = np.sin(2 * np.pi * ((2, 5, 9)[label] * moments + draws.uniform()))[:, None]
            values = values + 0.2 * draws.normal(size=(100, 2))
        elif kind == "points":
            values = draws.normal(size=(400, 3)) * np.array([(1, 1, 1), (3, 1, 1), (1, 1, 4)][label]) + 9
        else:
            # Each clip has its own background, in which only noise moves.
            values = np.kron(draws.integers(0, 100, (4, 4)), np.ones((8, 8), int)) + draws.integers(0, 40, (6, 32, 32))
            at = (0, 11, 21)[label]
            values[:, at : at + 10, 5:25] = 240
        np.save(tmp_path / f"{row}.npy", values.astype(np.uint8 if kind == "video" else np.float32))
        rows.append({"file": f"{row}.npy", "what": "abc"[(label + 1) % 3 if row in mislabelled else label]})
    columns = {"file": f"file:{kind}", "what": "what:label"}
    _, found = prepared_rows(tmp_path, rows, columns=columns, keep=["duplicate"])
    assert len(mislabelled & set(found)) >= 8 and len(set(found) - mislabelled) <= 1


def test_a_label_with_few_rows_of_each_class_is_not_judged_and_the_report_says_so(tmp_path):
    rows = [{"said": f"the words of example {number}", "what": "ab"[number % 2]} for number in range(12)]
    # A column that is always empty is uninformative too.
    rows = [{**row, "cell": "NA"} for row in rows]
    columns = {"said": "said", "nothing": "cell:table", "what": "what:label"}
    report, found = prepared_rows(tmp_path, rows, columns=columns, keep=["duplicate"])
    assert not found and report["not_judged"]["label_error"] == "no label has two classes with 10 rows or more"


def test_rows_that_come_class_by_class_are_judged_in_parts_of_all_classes(monkeypatch):
    draws, truth, distinctive = classes_of(300)
    order = np.argsort(truth, kind="stable")
    truth, distinctive = truth[order], distinctive[order]
    mislabelled = draws.choice(300, 12, replace=False)
    names = [f"class {name}" for name in truth]
    for row in mislabelled:
        names[row] = f"class {(truth[row] + 1) % 3}"
    column = types.SimpleNamespace(name="label")
    inputs, kinds = [types.SimpleNamespace(name="telling")], {"telling": Kind()}
    job = types.SimpleNamespace(num_rows=300, targets=[column], inputs=inputs, kinds=kinds)
    examined = types.SimpleNamespace(
        measures={"telling": {}},
        categories={"telling": {}},
        job=job,
        alive=np.ones(300, bool),
        classes=lambda name: names,
        features=lambda name: (np.arange(300), distinctive),
    )
    monkeypatch.setattr(labels_check, "_MAX_ROWS", 75)
    found = {finding.row for finding in label_error(examined)}
    assert len(found & set(mislabelled.tolist())) >= 11 and len(found) <= 13

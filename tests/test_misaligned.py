"""Rows whose inputs do not belong together: detected by a model, by a label, or reported as undecidable."""

from __future__ import annotations

import csv
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from mmjax.__main__ import main
from mmjax.errors import UserError
from mmjax.prepare.checks.pairs import leave_one_out_embeddings, local_fdr, mismatch_posterior
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local

WORDS = ("mountain", "river", "castle", "harbour")


def directions(labels: np.ndarray, draws: np.random.Generator, noise: float) -> np.ndarray:
    values = np.eye(12)[labels] + noise * draws.normal(size=(len(labels), 12))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def partly_shuffled(draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """Labels of the first input of 1,500 rows, labels of the second, and the 60 rows where the two differ."""
    labels = np.arange(1500) % 10
    shuffled = draws.choice(1500, 60, replace=False)
    others = labels.copy()
    others[shuffled] = (labels[shuffled] + draws.integers(1, 10, 60)) % 10
    return labels, others, set(shuffled.tolist())


def test_mismatched_pairs_are_suspected_and_others_are_not():
    draws = np.random.default_rng(0)
    labels, others, shuffled = partly_shuffled(draws)
    posterior, information = mismatch_posterior(directions(labels, draws, 0.15), directions(others, draws, 0.15))
    # Ten classes carry at most log 10 of information about the pair.
    assert 1 < information < np.log(10)
    suspected = set(np.flatnonzero(posterior > 0.5))
    assert len(suspected & shuffled) >= 0.95 * max(len(suspected), len(shuffled))


def test_systematic_errors_of_a_model_are_corrected():
    draws = np.random.default_rng(4)
    labels, heard, shuffled = partly_shuffled(draws)
    # Half of the sixes are perceived as threes, with an accent that the embedding also shows.
    accented = (heard == 6) & (draws.random(1500) < 0.5)
    perceived = np.eye(12)[np.where(accented, 3, heard)] + 0.6 * np.eye(12)[np.where(accented, 11, 10)]
    perceived += 0.1 * draws.normal(size=perceived.shape)
    one = directions(labels, draws, 0.15)
    other = (perceived / np.linalg.norm(perceived, axis=1, keepdims=True)).astype(np.float32)

    def shares(posterior: np.ndarray) -> tuple[float, float]:
        suspected = set(np.flatnonzero(posterior > 0.5))
        hits = len(suspected & shuffled)
        return hits / len(shuffled), hits / max(1, len(suspected))

    model, information = mismatch_posterior(one, other)
    learnt, learnt_information = mismatch_posterior(*leave_one_out_embeddings(one, other, None, None))
    assert min(shares(model)) < 0.8
    assert min(shares(learnt)) >= 0.95 and learnt_information > information


def test_the_local_false_discovery_rate_matches_its_closed_form():
    draws = np.random.default_rng(3)
    by_chance = draws.uniform(size=4000) < 0.2
    ranks = np.where(by_chance, draws.uniform(size=4000), draws.beta(1, 30, 4000))
    truth = 0.2 / (0.2 + 0.8 * 30 * (1 - ranks) ** 29)
    assert np.abs(local_fdr(ranks) - truth).mean() < 0.03


def test_matching_pairs_are_not_suspected():
    draws = np.random.default_rng(1)
    labels = np.arange(1000) % 10
    posterior, _ = mismatch_posterior(directions(labels, draws, 0.15), directions(labels, draws, 0.15))
    assert posterior.max() < 0.5


def test_an_uninformative_model_gives_no_information():
    draws = np.random.default_rng(2)
    unrelated = [directions(draws.integers(0, 10, 600), draws, 0.3) for _ in range(2)]
    assert mismatch_posterior(*unrelated)[1] < 0.1


def write_rows(folder: pathlib.Path, count: int, swapped: dict[int, int], seed: int = 0) -> pathlib.Path:
    """Two sentences about one of four places; for `{row: other}`, the second is about the place of row `other`."""
    folder.mkdir(parents=True)
    draws, rows = np.random.default_rng(seed), []
    for number in range(count):
        places = [WORDS[at % len(WORDS)] for at in (number, swapped.get(number, number))]
        names = ["".join(draws.choice(list("aeioubdgklmnprst"), 9)) for _ in range(4)]
        row = {"key": number, "seen": f"{names[0]} saw a {places[0]} with {names[1]}"}
        row |= {"said": f"{names[2]} spoke of the {places[1]} to {names[3]}", "place": WORDS[number % len(WORDS)]}
        rows.append(row)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "data.csv"


SWAPPED = {8: 9, 21: 24, 50: 53, 77: 80, 110: 113}
KEEP = ("duplicate", "leakage", "shared")


def suspected(folder: pathlib.Path, check: str = "misaligned") -> list[int]:
    lines = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    return sorted(int(line["key"]) for line in lines if line["check"] == check)


def test_an_input_that_contradicts_the_label_alone_is_suspected_and_the_label_is_not(tmp_path):
    source = write_rows(tmp_path / "in", 160, SWAPPED)
    prepare(PrepareConfig(source=str(source), keep=KEEP), tmp_path / "out", Local(1))
    assert suspected(tmp_path / "out") == sorted(SWAPPED)
    assert suspected(tmp_path / "out", "label_error") == []
    assert json.loads((tmp_path / "out" / "report.json").read_text())["not_judged"] == {}


class Unrelated:
    """Uninformative model, for the given pair of inputs."""

    identity = "a model"

    def __init__(self, *pair: str):
        self.pairs = [pair]

    def embed(self, rows):
        draws = np.random.default_rng(len(rows))
        return {pair: tuple(directions(np.arange(len(rows)) % 12, draws, 5.0) for _ in pair) for pair in self.pairs}


def test_undecidable_pairs_are_reported(tmp_path, capsys):
    source = write_rows(tmp_path / "in", 80, {})
    config = PrepareConfig(source=str(source), columns={"seen": "seen", "said": "said"}, keep=KEEP)
    done = prepare(config, tmp_path / "without", Local(1))
    assert "--alignment" in done.report["not_judged"]["misaligned"] and suspected(tmp_path / "without") == []
    assert "Not judged: misaligned" in (tmp_path / "without" / "card.html").read_text()
    done = prepare(config, tmp_path / "with", Local(1), aligner=Unrelated("seen", "said"))
    assert "not informative" in done.report["not_judged"]["misaligned"] and suspected(tmp_path / "with") == []
    with pytest.raises(UserError, match="compares image with text, but the inputs are seen, said"):
        prepare(config, tmp_path / "other", Local(1), aligner=Unrelated("image", "text"))
    assert main(["prepare", f"--source={source}", f"--output={tmp_path / 'c'}", "--columns=said=said"]) == 0
    assert "not judged" not in capsys.readouterr().out


def test_a_run_embeds_as_its_contrastive_task_does(tmp_path):
    from mmjax.evaluation.pair_embedder import PairEmbedder
    from mmjax.experiment import Experiment

    source = write_rows(tmp_path / "in", 80, {})
    columns = {"seen": "seen", "said": "said"}
    folder = prepare(PrepareConfig(source=str(source), columns=columns, keep=KEEP), tmp_path / "out", Local(1)).folder
    recipe = importlib.import_module("configs.prepared").get_config(str(folder))
    experiment = Experiment(recipe)
    state = experiment.init_state()
    aligner = PairEmbedder(
        experiment.objective, state.parameters, experiment.mesh, experiment.modalities, experiment.targets, "a run"
    )
    assert aligner.pairs == [("said", "seen")]
    records = experiment.dataset.source("train")
    rows = [dict(records[number].inputs) for number in range(5)]
    rows[3]["seen"] = None
    one, other = aligner.embed(rows)["said", "seen"]
    batch = next(iter(experiment.evaluation_batches("train")))
    places = [int(np.flatnonzero(np.asarray(batch.ids) == number)[0]) for number in range(5)]
    expected = experiment.objective.features(state.parameters, batch, train=False)["pairs"]
    np.testing.assert_allclose(one, np.asarray(jax.device_get(expected[0]))[places], atol=1e-5)
    present = [0, 1, 2, 4]
    np.testing.assert_allclose(other[present], np.asarray(jax.device_get(expected[1]))[places][present], atol=1e-5)
    assert np.isnan(other[3]).all()


@pytest.mark.slow
def test_a_trained_run_finds_the_pairs_that_were_shuffled(tmp_path):
    from mmjax.runs.run import train

    clean, messy = write_rows(tmp_path / "clean", 400, {}, 1), write_rows(tmp_path / "messy", 160, SWAPPED, 2)
    trusted = prepare(PrepareConfig(source=str(clean), keep=KEEP), tmp_path / "a", Local(1)).folder
    recipe = importlib.import_module("configs.prepared").get_config(str(trusted))
    recipe.tasks = {"pairs": {"kind": "contrastive", "pair": ["encoders.seen", "encoders.said"], "positives": "place"}}
    for encoder in recipe.model.encoders.values():
        encoder.update(width=32, depth=1, heads=2)
    recipe.model.fusion = None
    recipe.data.modality_dropout = {}
    recipe.train.steps = 150
    recipe.checkpoint.every = 150
    recipe.evaluate.every = 0
    train(recipe, tmp_path / "run")
    flags = ["--columns=seen=seen,said=said", f"--keep={','.join(KEEP)}", "--workers=1"]
    flags.append(f"--alignment={tmp_path / 'run'}")
    assert main(["prepare", f"--source={messy}", f"--output={tmp_path / 'b'}", *flags]) == 0
    assert suspected(tmp_path / "b") == sorted(SWAPPED)

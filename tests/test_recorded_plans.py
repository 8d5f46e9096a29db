"""Recorded plans: the comparison with them, and the tables in their page."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import pytest

from mmjax.planning import plan

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "03_plans"


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in ("check", "plans", "growth")}
    finally:
        sys.path.remove(str(FOLDER))


RECORDED = {"peak_bytes": 1000, "cycles": 2000, "collective_bytes": 3000}


@pytest.mark.parametrize("figure", RECORDED)
@pytest.mark.parametrize(("ratio", "good"), [(0.5, True), (1.0, True), (1.04, True), (1.06, False)])
def test_more_than_5_percent_above_the_record_is_a_failure(modules, capsys, figure, ratio, good):
    found = {**RECORDED, figure: int(RECORDED[figure] * ratio)}
    assert modules["check"].compare("recipe", found, RECORDED) is good
    assert ("rose" in capsys.readouterr().out) is not good


def test_collective_bytes_are_those_of_all_collectives(modules):
    plan = {"peak_bytes": 1, "cycles": None, "collectives": [{"bytes": 3}, {"bytes": 4}]}
    assert modules["check"].figures(plan) == {"peak_bytes": 1, "cycles": 0, "collective_bytes": 7}


def test_every_recipe_is_planned_on_every_pod(modules):
    jobs = modules["plans"].jobs()
    for recipe in modules["plans"].RECIPES:
        assert sum(name.startswith(f"{recipe} on ") and " at " not in name for name in jobs) == 10
    assert all(flags[0].startswith("--config=") for flags in jobs.values())


def test_the_page_has_the_tables_of_the_record(modules):
    record = json.loads(modules["plans"].RECORD.read_text())
    page = (FOLDER / "README.md").read_text()
    plans = modules["plans"]
    for table in (plans.recipes_table, plans.published_table, plans.beside_table, modules["growth"].growth_table):
        assert table(record) in page


@pytest.mark.parametrize("name", ["README.md", "docs/plan.md"])
def test_the_printed_plan_in_the_pages_is_the_recorded_one(modules, name):
    found = json.loads(modules["plans"].RECORD.read_text())["siglip_l16 on v5e-256"]
    words = " ".join((FOLDER.parents[1] / name).read_text().split())
    low, high = found["step_seconds_range"]
    hours = 1e9 / found["examples_per_second"] / 3600
    for line in (
        f"compute {1e3 * found['compute_seconds']:.2f} ms: {found['cycles']:,} cycles",
        f"kernels {1e3 * found['kernel_seconds']:.2f} ms: static cycles of the compiler",
        f"of which {1e3 * found['exposed_seconds']:.2f} ms exposed",
        f"step {1e3 * found['step_seconds']:.2f} ms; expected when measured: {1e3 * low:.2f} ms to {1e3 * high:.2f} ms",
        f"utilisation {found['utilisation']:.1%} of the bfloat16 peak",
        f"time {hours:,.1f} hours, {hours * 256:,.0f} chip-hours",
    ):
        assert line in words, line


def test_the_stated_range_of_published_runs_is_that_of_the_record(modules):
    record = json.loads(modules["plans"].RECORD.read_text())
    ratios = [record[name]["utilisation"] / found for name, (_, _, found, _) in modules["plans"].PUBLISHED.items()]
    stated = f"{min(ratios):.2f} to {max(ratios):.2f}"
    assert f"Three published runs took {stated} times" in " ".join(
        (FOLDER.parents[1] / "docs/plan.md").read_text().split()
    )
    assert f"Published runs: {stated} " in pathlib.Path(plan.__file__).read_text()
    assert min(ratios) >= plan.LOW_RATIO and max(ratios) <= plan.HIGH_RATIO


def test_the_summary_in_the_readme_has_the_recorded_utilisations(modules):
    record = json.loads(modules["plans"].RECORD.read_text())
    ours, theirs = (record[f"{who}siglip_l16 on v5e-256"]["utilisation"] for who in ("", "big_vision "))
    page = (FOLDER.parents[1] / "README.md").read_text()
    assert f"SigLIP L/16 at {ours:.2f} of peak, big_vision at {theirs:.2f}" in page

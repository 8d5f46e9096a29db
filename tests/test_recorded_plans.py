"""Recorded plans: the comparison with them, and the tables in their page."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "03_plans"


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in ("check", "plans")}
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
    for table in (plans.recipes_table(record), plans.published_table(record), plans.beside_table(record)):
        assert table in page

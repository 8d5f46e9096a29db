"""Every recipe in configs/ trains two steps in its small form, with each of its documented arguments.

Recipes that an experiment trains are covered by tests/test_reproduce_quick.py.
"""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from mmjax.__main__ import main
from mmjax.experiment import Experiment, plain
from mmjax.recipe import load_recipe
from mmjax.runs.run import train
from mmjax.runs.shrink import BATCH_SIZE, STEPS, shrink
from tests.test_digits import speech_is_installed
from tests.test_reproduce_quick import quick_cells

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = {
    "avmnist": [
        ":arithmetic", ":matched", ":arithmetic,speaker=jackson", ":matched,inputs=audio", ":matched,inputs=image",
        ":matched,speaker=lucas,inputs=image",
    ],
    "clip_b32": [""],
    "digits": [":arithmetic", ":matched"],
    "mixture": ["", ":prepared/tumours"],
    "prepared": [":prepared/mine", ":prepared/mine,target=kind"],
    "siglip_b16": [""],
    "siglip_l16": [""],
    "siglip_so400m": [""],
    "trimodal_l": [""],
}  # fmt: skip
REPRODUCED = {cell.config.removeprefix("configs/").replace(".py", "") for cell in quick_cells()}
RECIPES = {name + argument for name, arguments in ARGUMENTS.items() for argument in arguments}
SYNTHETIC = ["clip_b32", "siglip_b16", "siglip_l16", "siglip_so400m", "trimodal_l"]


def path_of(name: str) -> str:
    recipe, colon, argument = name.partition(":")
    return f"{ROOT / 'configs' / recipe}.py{colon}{argument}"


@pytest.fixture(scope="module")
def project(tmp_path_factory, compiled) -> pathlib.Path:
    """Folder with a prepared dataset."""
    folder = tmp_path_factory.mktemp("project")
    draws = np.random.default_rng(0)
    lines = ["image,caption,kind,size"]
    for row in range(60):
        name = f"{row}.png"
        PIL.Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)
        words = " ".join("".join(map(chr, draws.integers(97, 123, 6))) for _ in range(3))
        lines.append(f"{name},{words},{'ab'[row % 2]},{draws.normal():.4f}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    columns = "--columns=image=image:image,caption=caption:text,kind=kind:label,size=size:number"
    words = [f"--source={folder / 'mine.csv'}", f"--output={folder / 'prepared' / 'mine'}"]
    assert main(["prepare", columns, *words]) == 0
    return folder


@speech_is_installed
@pytest.mark.parametrize("name", sorted(RECIPES - REPRODUCED))
def test_every_recipe_trains(digits_folder, tmp_path, name):
    recipe = plain(load_recipe(path_of(name)))
    small = shrink(recipe)
    # `mmjax reproduce --quick` evaluates; see test_reproduce_quick.py.
    small["evaluate"] = {"every": 0, "splits": []}
    result = train(small, tmp_path / "run", Console(quiet=True))
    assert result["steps"] == STEPS
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(row["optimizer/skipped"] == 0 for row in rows)
    # A batch of a mixture may lack examples of one of its tasks.
    losses = [row[f"{task}/loss"] for row in rows for task in recipe["tasks"] if f"{task}/loss" in row]
    assert len(losses) >= len(recipe["tasks"]) and all(map(math.isfinite, losses))
    assert [child.name for child in (tmp_path / "run" / "checkpoints").iterdir()] == [str(STEPS)]


@pytest.mark.parametrize("name", ["avmnist", "digits"])
def test_the_default_is_the_arithmetic_that_an_experiment_reproduces(name):
    assert f"{name}:arithmetic" in RECIPES & REPRODUCED
    assert plain(load_recipe(path_of(name))) == plain(load_recipe(path_of(f"{name}:arithmetic")))


def test_every_recipe_is_in_the_list():
    assert {path.stem for path in (ROOT / "configs").glob("*.py") if "def get_config" in path.read_text()} == set(
        ARGUMENTS
    )


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_small_form_has_the_components_of_the_recipe(name):
    recipe = plain(load_recipe(path_of(name)))
    before = json.dumps(recipe)
    small = shrink(recipe)
    assert json.dumps(recipe) == before, "shrinking changed the recipe itself"
    for section in ("tasks", "optimizer"):
        assert small[section].keys() == recipe[section].keys()
    for group in ("encoders", "fusion"):
        if recipe["model"].get(group):
            assert kinds(small["model"][group]) == kinds(recipe["model"][group])
    assert small["train"]["batch_size"] == BATCH_SIZE and small["precision"] == recipe["precision"]
    full, tiny = (sum(x.size for x in leaves(Experiment(each))) for each in ({**recipe, "mesh": {"data": 8}}, small))
    assert tiny < full / 50


def kinds(section):
    return section.get("kind") or {name: child["kind"] for name, child in section.items()}


def leaves(experiment):
    import jax

    return jax.tree.leaves(experiment.shapes.parameters)

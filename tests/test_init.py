"""Recipes that ship with mmjax: looked up by name, copied by `mmjax init`."""

from __future__ import annotations

import pathlib
import site
import sys
import tomllib

import pytest

from mmjax import recipe
from mmjax.__main__ import main

ROOT = pathlib.Path(__file__).parents[1]


def test_a_bare_name_finds_the_local_recipe_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.load_recipe("digits:matched").data.task == "matched"
    assert main(["init", "digits"]) == 0
    copy = tmp_path / "configs" / "digits.py"
    assert copy.read_text() == (ROOT / "configs" / "digits.py").read_text()
    copy.write_text(copy.read_text().replace("config.seed = 0", "config.seed = 7"))
    assert recipe.load_recipe("digits").seed == 7


def test_a_recipe_is_copied_with_the_one_that_it_builds_on_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "siglip_b16", "--output=mine"]) == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["siglip.py", "siglip_b16.py"]
    (tmp_path / "mine" / "siglip.py").write_text("mine")
    assert main(["init", "siglip_b16", "--output=mine"]) == 2
    assert "mine/siglip.py: exists and differs from the recipe" in capsys.readouterr().err
    assert (tmp_path / "mine" / "siglip.py").read_text() == "mine"


def test_recipes_are_listed_and_a_wrong_name_is_answered_with_the_nearest(capsys):
    assert main(["init"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {
        path.stem
        for path in (ROOT / "configs").glob("*.py")
        if path.stem != "siglip"  # the shared part of its sizes
    }
    assert main(["init", "digts"]) == 2
    assert "unknown recipe 'digts'; did you mean 'digits'?" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["environment", "user", "site-packages"])
def test_a_wheel_installs_the_recipes_where_they_are_looked_for(root, tmp_path, monkeypatch):
    """`pip install` puts them into the environment; with --user, and with --target, into other folders."""
    data_files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    ((target, patterns),) = data_files.items()
    folder = tmp_path / root / target
    folder.mkdir(parents=True)
    for pattern in patterns:
        for path in ROOT.glob(pattern):
            (folder / path.name).write_text(path.read_text())
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(site, "getuserbase", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "site-packages" / "mmjax" / "recipe.py"))
    assert recipe.shipped_recipes()["digits"].is_relative_to(folder)


@pytest.mark.parametrize("name", ["digits2", "no/such.py"])
def test_a_recipe_that_does_not_exist_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"--config={name}", "--workdir=x"]) == 2
    assert "does not exist" in capsys.readouterr().err

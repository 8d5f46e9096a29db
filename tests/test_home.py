"""`~` is the home folder in every flag, recipe and variable that names a path."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from mmjax.__main__ import main
from mmjax.datasets.digits.digit_files import raw_folder
from mmjax.datasets.paths import resolve_paths
from mmjax.errors import UserError
from mmjax.files import cache_folder
from mmjax.host.compilation_cache import CACHE_VARIABLE, enable_compilation_cache
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.recipe import load_recipe


@pytest.fixture
def home(tmp_path, monkeypatch) -> pathlib.Path:
    """A home folder beside the current folder, which must stay empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "current").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MMJAX_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "current")
    yield tmp_path / "home"
    assert list((tmp_path / "current").iterdir()) == []


def test_flags_and_recipes_of_a_preparation(home, capsys):
    rows = [f"{'ab'[n % 2]},{n}.5,{n * n % 37}.25" for n in range(40)]
    (home / "data.csv").write_text("\n".join(["kind,x,y", *rows]))
    assert main(["prepare", "--source=~/data.csv", "--output=~/out", "--keep=duplicate"]) == 0
    assert (home / "out" / "manifest.json").exists()
    assert main(["init", "prepared", "--output=~/recipes"]) == 0
    config = load_recipe("~/recipes/prepared.py:~/out")
    assert resolve_paths(config.to_dict())["data"]["path"] == str(home / "out")
    assert main(["prepare", "--config=~/recipes/prepared.py:~/out"]) == 0
    assert f"folder      {home / 'out'}" in capsys.readouterr().out


def test_files_of_predict_and_of_the_digits(home):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    PIL.Image.fromarray(pixels).save(home / "a.png")
    np.testing.assert_array_equal(Image(Image.Config(size=(8, 8))).read("~/a.png", "--image"), pixels)
    for modality in (Image(Image.Config(size=(8, 8))), Audio(Audio.Config())):
        with pytest.raises(UserError, match="does not exist"):
            modality.read("~/gone", "--x")
    assert raw_folder("~/raw") == home / "raw"


def test_variables(home, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", "~/cache")
    assert cache_folder() == home / "cache" and raw_folder() == home / "cache" / "raw"
    assert cache_folder("~/other") == home / "other"
    environment = {CACHE_VARIABLE: "~/compiled"}
    enable_compilation_cache(cache_folder(), environment)
    assert environment[CACHE_VARIABLE] == str(home / "compiled")
    command = [sys.executable, "-m", "mmjax", "--version"]
    wrong = {**os.environ, "MMJAX_CACHE": "~nobody-of-this-name/x"}
    done = subprocess.run(command, capture_output=True, text=True, env=wrong)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "home folder" in done.stderr, done.stderr

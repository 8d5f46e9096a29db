"""Series, point clouds and clips trained together, as in `docs/own_data.md`, without custom code."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.test_own_data import PAGE, ROOT
from tests.test_points import pcd
from tests.test_video import npy, png, video

COMMANDS = re.findall(r"^mmjax .*prepared/lab.*$", PAGE, re.M)
FAULTS = ("none", "wear", "crack")


def series(fault: int, draws: np.random.Generator) -> bytes:
    """CSV with two channels of a sine, a square or a sawtooth wave, with noise and gaps."""
    phase = 2 * np.pi * (draws.uniform(3, 6) * np.linspace(0, 1, draws.integers(90, 130)) + draws.uniform())
    wave = (np.sin(phase), np.sign(np.sin(phase)), phase / np.pi % 2 - 1)[fault]
    values = np.stack([40 + 9 * wave, -wave], axis=1) + 0.2 * draws.normal(size=(len(wave), 2))
    cells = np.where(draws.random(values.shape) < 0.03, "", np.char.mod("%.4f", values))
    return ("volts,amperes\n" + "\n".join(map(",".join, cells)) + "\n").encode()


def scan(fault: int, draws: np.random.Generator) -> bytes:
    """PCD of a sphere, a cube or a torus, with random size and position."""
    directions, sides = draws.normal(size=(200, 3)), draws.uniform(-1, 1, (200, 3))
    (around, across), axis = draws.uniform(0, 2 * np.pi, (2, 200)), draws.integers(0, 3, 200)
    sides[np.arange(200), axis] = np.sign(sides[np.arange(200), axis])
    ring = 1 + 0.4 * np.cos(across)
    torus = np.stack([ring * np.cos(around), ring * np.sin(around), 0.4 * np.sin(across)], axis=1)
    points = (directions / np.linalg.norm(directions, axis=1, keepdims=True), sides, torus)[fault]
    points = draws.uniform(1, 4) * (points + 0.03 * draws.normal(size=points.shape)) + draws.normal(size=3)
    return pcd(points.astype("<f4").tobytes(), 200)


def clip(fault: int, draws: np.random.Generator) -> np.ndarray:
    """A square that moves left, right or down."""
    frames = np.full((12, 32, 32, 3), draws.integers(0, 80, 3), np.uint8)
    colour, start, move = draws.integers(150, 255, 3), draws.uniform(0, 32, 2), ((0, -1.6), (0, 1.6), (1.6, 0))[fault]
    for number, frame in enumerate(frames):
        top, left = (start + np.multiply(move, number)).astype(int)
        frame[np.ix_((top + np.arange(9)) % 32, (left + np.arange(9)) % 32)] = colour
    return frames


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "lab").mkdir()
    rows = ["motion,scan,clip,fault"]
    for number in range(480):
        draws, fault, lacking = np.random.default_rng(number), number % 3, number // 3 % 8
        names = [f"{number}.csv", f"{number}.pcd", (f"{number}", f"{number}.mp4", f"{number}.npy")[number // 3 % 3]]
        (folder / "lab" / names[0]).write_bytes(series(fault, draws))
        (folder / "lab" / names[1]).write_bytes(scan(fault, draws))
        frames, target = clip(fault, draws), folder / "lab" / names[2]
        if target.suffix:
            target.write_bytes(video(frames) if target.suffix == ".mp4" else npy(frames))
        else:
            target.mkdir()
            for at, frame in enumerate(frames):
                (target / f"{at}.png").write_bytes(png(frame))
        if lacking < 3:
            names[lacking] = ""
        rows.append(",".join([*names, FAULTS[fault]]))
    (folder / "lab" / "data.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
def test_the_page_trains_a_model_for_which_each_input_suffices(project):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    assert [command.split()[1] for command in COMMANDS] == ["prepare", "train"]
    for command in COMMANDS:
        words = [sys.executable, "-m", *shlex.split(command)]
        words += ["--config.train.steps=250"] if "train" in words else []
        done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = json.loads((project / "runs" / "lab" / "result.json").read_text())["subsets"]["test"]
    # Three faults: chance level is a third.
    accuracies = {inputs: found[inputs]["fault/accuracy"] for inputs in ("motion", "scan", "clip", "clip+motion+scan")}
    assert min(accuracies.values()) > 0.7, accuracies

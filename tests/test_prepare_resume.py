"""A preparation that is killed and resumed writes the same bytes as an uninterrupted one."""

from __future__ import annotations

import csv
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import scipy.io.wavfile

ROOT = pathlib.Path(__file__).parents[1]
ROWS = 250


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """Images and sounds of noise: all are different, except for a few copies."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        blocks = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
        picture = PIL.Image.fromarray(blocks).resize((40, 40), PIL.Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")
        sound = (8000 * rng.normal(size=4000)).clip(-32000, 32000).astype(np.int16)
        scipy.io.wavfile.write(folder / f"{number}.wav", 8000, sound)
        rows.append({"picture": f"{number}.png", "sound": f"{number}.wav", "kind": "ab"[number % 2]})
    rows += rows[:7]
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "data.csv"


KILLED_AFTER_TWO_SHARDS = """
import os, signal, sys
from mmjax.__main__ import main
from mmjax.prepare import shards

replace, left = os.replace, 2

def replace_and_count(source, target):
    global left
    replace(source, target)
    left -= str(target).endswith(".json") and target.parent.name == "shards"
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

shards.os.replace = replace_and_count
sys.exit(main())
"""


def start(source: pathlib.Path, output: pathlib.Path, workers: int, code: str = "") -> subprocess.Popen:
    program = ["-c", code] if code else ["-m", "mmjax"]
    command = [sys.executable, *program, "prepare", f"--source={source}", f"--output={output}"]
    # Small shards, so that there are many to interrupt.
    command += [f"--workers={workers}", "--set", "shard_megabytes=0.2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> tuple[pathlib.Path, float]:
    """(finished folder, seconds that it took)."""
    output = tmp_path_factory.mktemp("undisturbed") / "data"
    begun = time.monotonic()
    assert start(source, output, 1).wait() == 0
    return output, time.monotonic() - begun


def test_any_number_of_workers_writes_the_same_bytes(source, undisturbed, tmp_path):
    assert start(source, tmp_path / "data", 2).wait() == 0
    assert len([name for name in contents(tmp_path / "data") if "array_record" in name]) > 5
    assert contents(tmp_path / "data") == contents(undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(5))
def test_a_preparation_killed_at_a_random_moment_resumes_to_the_same_bytes(source, undisturbed, tmp_path, turn):
    folder, seconds = undisturbed
    moments = random.Random(turn)
    output = tmp_path / "data"
    process = start(source, output, 1 + turn % 2)
    # If the machine was slower before, the kill may come too late; then try an earlier moment.
    wait = moments.uniform(0.2, 0.9) * seconds
    while True:
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            # Kill the workers too: all processes of its session.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        shutil.rmtree(output)
        process, wait = start(source, output, 1 + turn % 2), 0.7 * wait
    assert start(source, output, 1).wait() == 0
    assert contents(output) == contents(folder)
    assert not output.with_name("data.partial").exists()


def test_finished_shards_are_not_written_again(source, undisturbed, tmp_path):
    output = tmp_path / "data"
    assert start(source, output, 1, KILLED_AFTER_TWO_SHARDS).wait() == -signal.SIGKILL
    shards = tmp_path / "data.partial" / "work" / "shards"
    examined = list((tmp_path / "data.partial" / "work" / "examined").iterdir())
    marks = {path: path.with_suffix("").stat().st_ino for path in shards.glob("*.json")}
    assert len(marks) == 2 and len(examined) == -(-(ROWS + 7) // 64)
    assert start(source, output, 1).wait() == 0
    for path, inode in marks.items():
        assert (output / path.with_suffix("").name).stat().st_ino == inode
    assert contents(output) == contents(undisturbed[0])

"""Follows docs/packing.md literally: images of many sizes share rows, and a model learns from them."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "packing.md").read_text()


@pytest.mark.slow
def test_the_page_trains_evaluates_and_answers(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    name, code = re.search(r"^### `(.*)`\n\n```python\n(.*?)^```$", PAGE, re.M | re.S).groups()
    (tmp_path / name).write_text(code)
    commands = re.search(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)[1].splitlines()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    said = {}
    for line in [name, *(f"-m {command}" for command in commands)]:
        words = [sys.executable, *shlex.split(line)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[words[3] if len(words) > 3 else name] = done.stdout
    assert "examples on average, packed in 4 rows" in said["train"] and "subject " in said["predict"]
    rows = [json.loads(line) for line in (tmp_path / "runs/photos/metrics.jsonl").read_text().splitlines()]
    losses = [row["subject_from_picture/loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    result = json.loads((tmp_path / "runs/photos/result.json").read_text())
    assert result["test"]["subject_from_picture/accuracy"] > 0.8

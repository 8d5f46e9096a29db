"""Metrics log: metrics.jsonl and TensorBoard, without duplicate rows after a resume."""

from __future__ import annotations

import json
import os
import pathlib

from absl import logging

from mmjax.errors import UserError
from mmjax.files import to_json, write_atomically
from mmjax.training.tensorboard import TensorBoard


class MetricsLog:
    """Appends rows `{"step", "split", NAME: value, ...}`. Construct it in one process only.

    Args:
      workdir: folder of `metrics.jsonl` and `tensorboard/`.
      step: the restored data step; later rows are deleted, since the resumed run writes them again.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self.path = workdir / "metrics.jsonl"
        if self.path.exists():
            lines = [line for line, row in _parse(self.path) if row["step"] <= step]
            write_atomically(self.path, "".join(lines))
        self.file = open(self.path, "a")  # noqa: SIM115
        self.board = TensorBoard(workdir / "tensorboard", first_step=step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends a row; values that are not finite become null."""
        self.file.write(to_json({"step": step, "split": split, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Flushes to disk. Call before a checkpoint: a run resumed from it does not write earlier rows again."""
        if os.fstat(self.file.fileno()).st_nlink == 0:
            logging.warning("%s was deleted, and the earlier rows with it", self.path)
            self.file.close()
            self.file = open(self.path, "a")  # noqa: SIM115
        os.fsync(self.file.fileno())
        self.board.flush()

    def close(self) -> None:
        """Closes both files."""
        self.file.close()
        self.board.close()


def read_rows(workdir: pathlib.Path, split: str | None = None) -> list[dict]:
    """Reads the rows of `metrics.jsonl`, optionally of one split only. Skips damaged lines with a warning."""
    rows = [row for _, row in _parse(workdir / "metrics.jsonl")]
    return [row for row in rows if split is None or row["split"] == split]


def _parse(path: pathlib.Path) -> list[tuple[str, dict]]:
    """Returns (line, row) of each intact line.

    A last line without newline is dropped silently, because its write was interrupted; the run writes it again.

    Raises:
      UserError: if `path` is not a file.
    """
    if not path.is_file():
        raise UserError("--workdir", f"{path} is not a file", "move it away")
    *lines, _ = path.read_bytes().split(b"\n")
    parsed, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int) or not isinstance(row["split"], str):
                raise TypeError
            parsed.append((line.decode() + "\n", row))
        except (KeyError, TypeError, ValueError):
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:8])) + (" …" if len(damaged) > 8 else "")
        logging.warning("%s: skipped %d damaged lines: %s", path, len(damaged), shown)
    return parsed

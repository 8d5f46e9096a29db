"""Metrics log: metrics.jsonl and TensorBoard, without duplicate rows after a resume."""

from __future__ import annotations

import json
import os
import pathlib

from mmjax.files import to_json, write_atomically


class MetricsLog:
    """Appends rows `{"step", "split", NAME: value, ...}`. Construct it in one process only.

    Args:
      workdir: folder of `metrics.jsonl` and `tensorboard/`.
      step: the restored data step; later rows are deleted, since the resumed run writes them again.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        self.path = workdir / "metrics.jsonl"
        if self.path.exists():
            rows = []
            for line in self.path.read_text().splitlines(keepends=True):
                # Drop a last line without newline: its write was interrupted.
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    rows.append(line)
            write_atomically(self.path, "".join(rows))
        self.file = open(self.path, "a")  # noqa: SIM115
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Appends a row; values that are not finite become null."""
        self.file.write(to_json({"step": step, "split": split, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Flushes to disk. Call before a checkpoint: a run resumed from it does not write earlier rows again."""
        os.fsync(self.file.fileno())
        self.board.flush()

    def close(self) -> None:
        """Closes both files."""
        self.file.close()
        self.board.close()


def read_rows(workdir: pathlib.Path, split: str | None = None) -> list[dict]:
    """Reads the rows of `metrics.jsonl`, optionally of one split only."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if split is None or row["split"] == split]

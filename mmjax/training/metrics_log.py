"""metrics.jsonl and TensorBoard: each row of a run once, also after it was resumed."""

from __future__ import annotations

import json
import math
import os
import pathlib

from mmjax.files import write_atomically


class MetricsLog:
    """Writes rows `{"step", "split", "name": value…}`; made by the one process that writes.

    Args:
      workdir: where `metrics.jsonl` and `tensorboard/` are.
      step: the restored data step; rows after it are cut off, since they will be made again.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        self.path = workdir / "metrics.jsonl"
        if self.path.exists():
            rows = []
            for line in self.path.read_text().splitlines(keepends=True):
                # A line without its end was cut off by a kill.
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    rows.append(line)
            write_atomically(self.path, "".join(rows))
        self.file = open(self.path, "a")  # noqa: SIM115
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Adds a row; numbers that are not finite become null, as JSON has no other name for them."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """On the disk before a checkpoint is: a resumed run does not make earlier rows again."""
        os.fsync(self.file.fileno())
        self.board.flush()

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_rows(workdir: pathlib.Path, split: str | None = None) -> list[dict]:
    """The rows of a workdir, of one split or of all."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if split is None or row["split"] == split]

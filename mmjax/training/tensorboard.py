"""TensorBoard event files, written synchronously, so that a full disk can neither block nor end the run."""

from __future__ import annotations

import contextlib
import pathlib
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

from absl import logging


class TensorBoard:
    """Writes scalars to a new event file. After the first failed write it warns once and drops all later scalars.

    Args:
      folder: folder of the event files, created if it does not exist.
      first_step: TensorBoard discards this and later steps of earlier files, since the run repeats them.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        # Imported here because the import takes a second.
        from tensorboardX.proto.event_pb2 import SessionLog

        self.folder = folder
        self._writer: Any = None
        with self._warnings():
            folder.mkdir(parents=True, exist_ok=True)
            names = [re.match(r"events\.out\.tfevents\.(\d{10})", path.name) for path in folder.iterdir()]
            earlier = [int(match[1]) for match in names if match]
            # TensorBoard reads the files in the order of their names, which begin with the time in seconds.
            self._writer = _open(folder, max([int(time.time()), *(second + 1 for second in earlier)]))
            self._write(file_version="brain.Event:2")
            if earlier:
                self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one value."""
        from tensorboardX.summary import scalar

        with self._warnings():
            self._write(step=step, summary=scalar(name, value))

    def flush(self) -> None:
        """Flushes the file to disk."""
        with self._warnings():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with self._warnings():
            if self._writer is not None:
                self._writer.close()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._writer is not None:
            self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())

    @contextlib.contextmanager
    def _warnings(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logging.warning("No more events are written to %s: %s", self.folder, error.strerror or error)


def _open(folder: pathlib.Path, second: int) -> Any:
    from tensorboardX.record_writer import RecordWriter

    return RecordWriter(str(folder / f"events.out.tfevents.{second:010}.{socket.gethostname()}"))

"""The metrics log and TensorBoard agree after a resume, and survive damaged, deleted and unwritable files."""

from __future__ import annotations

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mmjax.training.metrics_log import MetricsLog, read_rows


def test_damaged_rows_are_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 5, "split": "train", "loss": 1.0}\n'
    damaged = [b"\0" * 200, b"\xff\xfe{}", b'{"step": 5}', b"[5]", b'{"step": "5", "split": "train"}', b"7", b""]
    path.write_bytes(good + b"\n".join(damaged) + b"\n" + good)
    assert read_rows(tmp_path) == [json.loads(good)] * 2
    assert "skipped 7 damaged lines: 2, 3, 4, 5, 6, 7, 8" in caplog.text
    MetricsLog(tmp_path, 5).close()
    assert path.read_bytes() == good * 2


def events(folder):
    """Events of all files, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


@pytest.mark.parametrize("restored", [0, 10])
def test_tensorboard_discards_the_steps_that_a_resumed_run_repeats(tmp_path, restored):
    for last, start in ((20, 0), (30, restored)):
        log = MetricsLog(tmp_path, start)
        for step in range(start + 5, last + 1, 5):
            log.write(step, "train", {"loss": float(last)})
        log.close()
    # TensorBoard discards earlier events from a session's first step on.
    seen = {}
    for event in events(tmp_path / "tensorboard"):
        if event.session_log.status == SessionLog.START:
            seen = {step: values for step, values in seen.items() if step < event.step}
        for value in event.summary.value:
            seen.setdefault(event.step, []).append((value.tag, value.simple_value))
    rows = {row["step"]: [("train/loss", row["loss"])] for row in read_rows(tmp_path)}
    assert seen == rows and list(seen) == [5, 10, 15, 20, 25, 30]
    assert seen[5] == [("train/loss", 20.0 if restored else 30.0)] and seen[15] == [("train/loss", 30.0)]


def test_a_clock_that_went_back_does_not_change_the_order_of_the_event_files(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    (folder / "events.out.tfevents.4000000000.host").write_bytes(b"")
    MetricsLog(tmp_path, 0).close()
    assert sorted(path.name for path in folder.iterdir())[1].startswith("events.out.tfevents.4000000001.")


def test_a_failing_event_file_ends_no_run(tmp_path, caplog, monkeypatch):
    log, full = MetricsLog(tmp_path, 0), open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(log.board._writer, "_writer", full)
    for step in range(100):
        log.write(step, "train", {"loss": 1.0})
    log.sync()
    log.close()
    assert len(read_rows(tmp_path)) == 100
    assert caplog.text.count("No more events are written") == 1


def test_a_deleted_log_is_begun_again(tmp_path, caplog):
    log = MetricsLog(tmp_path, 0)
    log.write(1, "train", {"loss": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    log.sync()
    log.write(2, "train", {"loss": 1.0})
    log.close()
    assert [row["step"] for row in read_rows(tmp_path)] == [2] and "was deleted" in caplog.text

"""The ledger of wall time, against sums by hand of a clock that moves only when the test says so."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import pytest

from mmjax.host.process_age import process_age
from mmjax.training import ledger as ledger_module
from mmjax.training.ledger import PARTS, Ledger, mark_saved, timed, timed_batches


class Clock:
    """A clock that stands still; `now += seconds` moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def read(path) -> dict:
    return json.loads(path.read_text())


def train(path, clock, resumed: int, steps: int, saves=(), *, start=7.0, step=2.0, save=1.0, kill=False) -> Ledger:
    """A process that starts, restores, and trains; a killed one ends after its last step with a write, no more."""
    ledger = Ledger(earlier=3.0, clock=clock)
    ledger.__enter__()
    clock.now += start
    ledger.open(path)
    if resumed:
        with timed("restore"):
            clock.now += 0.5
    ledger.resume(resumed)

    def batches():
        while True:
            clock.now += 0.25
            yield None

    with timed("step"):
        for number, _ in zip(range(resumed + 1, steps + 1), timed_batches(batches()), strict=False):
            clock.now += step
            if number in saves:
                with timed("checkpoint"):
                    clock.now += save
                    mark_saved(number)
    if kill:
        ledger.write()
        ledger.saved = False
        content = path.read_bytes()
    ledger.__exit__(None, None, None)
    if kill:
        path.write_bytes(content)
    return ledger


def test_parts_nest_and_add_up(clock):
    with Ledger(earlier=5.0, clock=clock) as ledger:
        clock.now += 1
        with timed("step"):
            clock.now += 10
            with timed("evaluation"):
                clock.now += 20
                with timed("restore"):
                    clock.now += 40
                clock.now += 80
            with pytest.raises(ZeroDivisionError), timed("checkpoint"):
                clock.now += 160
                raise ZeroDivisionError
            clock.now += 320
        clock.now += 640
    summary = ledger.summary()
    expected = {"other": 646, "step": 330, "evaluation": 100, "restore": 40, "checkpoint": 160}
    assert summary["seconds"] == dict.fromkeys(PARTS, 0.0) | expected
    assert summary["total_seconds"] == 5 + 1271 and math.isclose(sum(summary["percent"].values()), 100, abs_tol=0.05)
    with timed("step"):
        clock.now += 1000
    assert ledger.summary()["seconds"]["step"] == 330, "outside a run no part is charged"


def test_time_that_jax_compiles_is_moved_once_from_where_it_was_spent(clock):
    with Ledger(clock=clock) as ledger, timed("step"):
        clock.now += 1
        # A trace of 8 s that contains one of 3 s, then 4 s of the compiler, then one second of work.
        clock.now += 4
        jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 3.0)
        clock.now += 4
        jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 8.0)
        clock.now += 4
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 4.0)
        jax.monitoring.record_event_duration_secs("/jax/other", 4.0)
        clock.now += 1
    assert ledger.seconds["compile"] == 12 and ledger.seconds["step"] == 2


def test_a_real_compilation_is_compile_time():
    with Ledger() as ledger, timed("evaluation"):
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T + 0.0625)(jnp.ones((3, 5)))
    assert ledger.seconds["compile"] > ledger.seconds["evaluation"] > 0
    assert sum(value > 0 for value in ledger.seconds.values()) == 3


def test_time_after_the_restored_checkpoint_of_a_killed_process_is_lost(clock, tmp_path):
    path = tmp_path / "ledger.json"
    begin = clock.now
    train(path, clock, 0, 13, saves=(4, 8), kill=True)
    # Steps 9 to 13, with their input, were thrown away.
    second = train(path, clock, 8, 11, saves=(), kill=True)
    lost = 5 * 2.25
    assert second.seconds["lost"] == lost
    kept = {"other": 2 * (3 + 7), "step": (8 + 3) * 2.0, "input": (8 + 3) * 0.25, "checkpoint": 2.0, "restore": 0.5}
    assert second.seconds == dict.fromkeys(PARTS, 0.0) | kept | {"lost": lost}
    # The second process saved nothing: all of it is lost.
    lost += 10 + 0.5 + 3 * 2.25
    third = train(path, clock, 8, 12, saves=(12,))
    kept = {"other": 2 * (3 + 7), "step": 12 * 2.0, "input": 12 * 0.25, "checkpoint": 3.0, "restore": 0.5}
    assert third.seconds == dict.fromkeys(PARTS, 0.0) | kept | {"lost": lost}
    assert sum(third.seconds.values()) == clock.now - begin + 3 * 3.0
    assert third.starts == 3 and third.summary()["total_seconds"] == sum(third.seconds.values())
    # The run ended in order after a save, so a further start loses nothing.
    assert train(path, clock, 12, 12).seconds["lost"] == lost
    assert train(path, clock, 12, 12).seconds["lost"] == lost


def test_an_older_checkpoint_than_the_newest_loses_more(clock, tmp_path):
    path = tmp_path / "ledger.json"
    train(path, clock, 0, 13, saves=(4, 8), kill=True)
    # As when checkpoint 8 is damaged: steps 5 to 13 and the save of 8.
    assert train(path, clock, 4, 5, kill=True).seconds["lost"] == 9 * 2.25 + 1
    # As when all checkpoints were deleted: everything.
    total = sum(read(path)["seconds"].values())
    assert train(path, clock, 0, 1).seconds["lost"] == total


def test_a_process_that_ends_in_order_before_its_first_step_loses_nothing(clock, tmp_path):
    path = tmp_path / "ledger.json"
    train(path, clock, 0, 0)
    assert train(path, clock, 0, 3).seconds["lost"] == 0
    assert train(path, clock, 0, 3).seconds["lost"] == 3 * 2.25 + 10, "steps without a checkpoint are thrown away"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"starts": 1}', '{"starts": 1, "seconds": {}, "marks": {}}', "\0" * 64, "\xff"]
)
def test_a_damaged_file_is_named_and_counting_begins_anew(clock, tmp_path, caplog, content):
    path = tmp_path / "ledger.json"
    path.write_bytes(content.encode("latin-1"))
    ledger = train(path, clock, 8, 10, saves=(10,))
    assert "ledger.json is damaged" in caplog.text
    assert ledger.starts == 1 and ledger.seconds["lost"] == 0 and read(path)["seconds"] == ledger.seconds


def test_the_file_is_written_while_the_run_waits_and_stays_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "WRITE_SECONDS", 0.01)
    path = tmp_path / "ledger.json"
    with Ledger() as ledger:
        ledger.open(path)
        first = read(path)["seconds"]["other"]
        with timed("evaluation"):
            while read(path)["seconds"]["evaluation"] == 0:
                pass
        assert read(path)["seconds"]["other"] >= first
        path.unlink()
    assert not path.exists()


def test_the_age_of_a_process_grows_with_it():
    young = process_age()
    assert 0 < young <= process_age()

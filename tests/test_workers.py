"""How many processes load data."""

import pytest

from mmjax.data import workers
from mmjax.data.workers import available_bytes, max_workers, visible_cores, worker_count

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "free", "batch", "count"),
    [
        # Two cores are for others; memory is plenty.
        (96, 400 * GIB, 40 * 2**20, 94),
        (2, 400 * GIB, 2**20, 0),
        (1, 400 * GIB, 2**20, 0),
        # Half of 8 GiB, and each worker needs 600 MiB and two batches of 200.
        (96, 8 * GIB, 200 * 2**20, 4),
        # Nothing is left for a single one.
        (96, GIB, 2**20, 0),
    ],
)
def test_cores_and_half_of_the_memory_are_the_limit(cores, free, batch, count):
    assert max_workers(cores, free, batch, prefetch=4) == count


def test_few_workers_make_more_batches_ahead_each():
    # Two workers with 600 MiB and three batches each fit into 4 GiB, two with four more batches do not.
    assert max_workers(4, 8 * GIB, 480 * 2**20, prefetch=4) == 2
    assert max_workers(4, 8 * GIB, 480 * 2**20, prefetch=12) == 0


def test_a_step_on_the_cpu_keeps_all_cores(monkeypatch):
    monkeypatch.setattr(workers, "visible_cores", lambda: 16)
    monkeypatch.setattr(workers, "available_bytes", lambda: 64 * GIB)
    assert worker_count(2**20, 4, "cpu") == 0 and worker_count(2**20, 4, "tpu") == 14


def test_this_machine_has_cores_and_memory():
    assert visible_cores() >= 1 and 0 < available_bytes() < 2**50

"""Input pipeline of plain Grain, as in its tutorial, over the files of a table."""

from __future__ import annotations

import grain
import loading
from absl import flags

SETTINGS = loading.settings()
ROWS = loading.rows(SETTINGS)


def load(row: dict[str, str]):
    return loading.example(SETTINGS.data, row)


def main() -> None:
    flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(ROWS).seed(0).shuffle().repeat(None).map(load)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * SETTINGS.batch_size))
    dataset = dataset.batch(SETTINGS.batch_size, drop_remainder=True)
    if SETTINGS.workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(SETTINGS.workers, per_worker_buffer_size=2))
    loading.time_batches(iter(dataset), SETTINGS, lambda batch: batch["image"])


if __name__ == "__main__":
    main()

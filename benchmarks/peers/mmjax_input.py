"""Input pipeline of mmjax, over the data that `mmjax prepare` wrote from the same table."""

from __future__ import annotations

import json
import pathlib
import sys
import time

import loading

from mmjax.data.pipeline import Pipeline
from mmjax.datasets import Prepared
from mmjax.modalities import Audio, Image, Text

SETTINGS = loading.settings()


def main() -> None:
    dataset = Prepared(Prepared.Config(path=str(pathlib.Path(SETTINGS.data) / SETTINGS.prepared)))
    modalities = {
        "picture": Image(Image.Config(size=(loading.SIDE, loading.SIDE))),
        "sound": Audio(Audio.Config(sample_rate=loading.RATE, seconds=loading.SECONDS, normalise="none")),
        "caption": Text(Text.Config(length=loading.LENGTH)),
    }
    pipeline = Pipeline(dataset, modalities, workers=SETTINGS.workers)
    print(json.dumps(stages(pipeline)), file=sys.stderr)
    with pipeline.train_batches("train", SETTINGS.batch_size) as batches:
        loading.time_batches(batches, SETTINGS, lambda batch: batch.inputs["picture"].values)


def stages(pipeline: Pipeline, count: int = 64) -> dict[str, float]:
    """Returns the milliseconds per example of each stage, run sequentially in this process."""
    source, found = pipeline.dataset.source("train"), {}
    stored = source._opened[0]
    indices = list(range(min(count, len(source))))

    def timed(name, function):
        start = time.perf_counter()
        result = function()
        found[name] = (time.perf_counter() - start) * 1e3 / len(indices)
        return result

    # Open the files and load them into the file cache.
    _ = [stored[index] for index in indices]
    timed("read", lambda: [stored[index] for index in indices])
    records = timed("read and decode", lambda: [source[index] for index in indices])
    for name, modality in pipeline.modalities.items():
        modality.process(records[0].inputs[name])
        timed(name, lambda: [modality.process(record.inputs[name]) for record in records])  # noqa: B023
    return found


if __name__ == "__main__":
    main()

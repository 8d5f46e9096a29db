"""From records to batches: a batch is a pure function of (seed, data step), and nothing else.

Hosts, worker processes, threads and devices only decide who computes which rows of it. So there is no state to save: a
run that resumes asks for the batches from its data step on. `mmjax.data.samplers` says which records are in a batch.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from mmjax.data.batching import LARGEST_STEP, BatchFunction
from mmjax.data.buffer_pool import BufferPool
from mmjax.data.dataset import Dataset, Source, check_split
from mmjax.data.packed_sampler import PackedSampler
from mmjax.data.packing import Packing
from mmjax.data.rows import OwnRows, Rows
from mmjax.data.samplers import IndexSampler, SequentialSampler
from mmjax.data.sampling import FilterConfig, SamplingConfig, make_sampler
from mmjax.errors import UserError, nearest
from mmjax.modalities import Modality
from mmjax.modalities.augmentation import Augmentation
from mmjax.tokens import Batch, InputSpec

# After this many records, more broken ones than whole ones mean a fault of the dataset and not of a few files.
_ENOUGH_RECORDS = 100
_BROKEN_RECORDS_TO_LOG = 10


class Pipeline:
    """Makes a dataset's records into batches.

    Args:
      dataset: where the records come from.
      modalities: {name of an input: the modality that processes it}; inputs that are not named are left out.
      seed: of the order of the training split and of modality dropout.
      modality_dropout: {name of an input: rate}, applied in training and drawn from (seed, data step, row). No
        example loses all of its inputs; see `mmjax.data.dataset.dropped`.
      augment: {name of an input: what changes its raw data in training, in order}, drawn from the same.
      sampling, filters: which records training sees how often; see `mmjax.data.sampling`.
      packing: how examples share rows; None gives each a row of its own.
      workers: the number of processes that make training batches; 0 makes them in a thread of this process.
      prefetch: how many batches are made ahead.

    Attributes:
      broken: how many records or inputs of records, of those in the batches handed out, could not be read or decoded.
        They count as absent.

    Raises:
      UserError: if `modalities` or `absent` names an input that there is not.
    """

    def __init__(
        self,
        dataset: Dataset,
        modalities: Mapping[str, Modality],
        *,
        seed: int = 0,
        modality_dropout: Mapping[str, float] | None = None,
        augment: Mapping[str, Sequence[Augmentation]] | None = None,
        sampling: SamplingConfig | None = None,
        filters: Mapping[str, FilterConfig] | None = None,
        packing: Packing | None = None,
        workers: int = 0,
        prefetch: int = 4,
    ):
        for name in modalities:
            if name not in dataset.inputs:
                where, known = f"model.encoders.{name}", dataset.inputs
                raise UserError(where, f"the data has no input {name!r}", nearest(name, known))
        for name in modality_dropout or {}:
            if name not in modalities:
                raise UserError(
                    f"data.modality_dropout.{name}", f"the model has no input {name!r}", nearest(name, modalities)
                )
        self.dataset, self.modalities, self.seed, self.modality_dropout = (
            dataset,
            dict(modalities),
            seed,
            dict(modality_dropout or {}),
        )
        self.augment, self.workers, self.prefetch = dict(augment or {}), workers, prefetch
        self.sampling, self.filters, self.packing = sampling, dict(filters or {}), packing
        self.broken = 0
        self._seen = 0
        self._sources: dict[str, Source] = {}
        self._planned: dict[str, dict[str, np.ndarray]] = {}

    @property
    def specs(self) -> dict[str, InputSpec]:
        """{name of an input: its shape, dtype and mask}."""
        if self.packing:
            return self.packing.specs
        return {name: modality.spec for name, modality in self.modalities.items()}

    def size(self, split: str) -> int:
        """The number of examples of a split. Raises a UserError where it has none, or they cannot be packed."""
        if self.packing:
            self._planned_lengths(split, self.packing)
        return len(self._source(split))

    def train_batches(
        self, split: str, batch_size: int, start_step: int = 0, rows: Sequence[int] | np.ndarray | None = None
    ) -> BatchIterator:
        """The batches of data steps `start_step`, `start_step` + 1, … without end.

        Args:
          split: the name of the split.
          batch_size: of the global batch, B.
          start_step: the first data step.
          rows: which of the rows to make, all by default; another process makes the others. There are B of them, or
            B / slots where examples are packed.

        Returns:
          An iterator of batches of NumPy arrays with the examples of these rows. Close it, or use it in a `with`
          statement. An example's id is its number in the split plus a multiple of the split's size that grows with the
          epoch, so that ids differ within a batch even where the batch exceeds the split.
        """
        batch_of = self._train_function(split, batch_size, rows)
        return self._iterate(batch_of, start_step, LARGEST_STEP, self.workers)

    def batch_at(self, split: str, batch_size: int, step: int, rows: Sequence[int] | np.ndarray | None = None) -> Batch:
        """The batch that `train_batches` yields for data step `step`, made here and now."""
        batch, troubles = self._train_function(split, batch_size, rows)(step)
        self._note(batch, troubles)
        return batch

    def evaluation_batches(
        self, split: str, batch_size: int, rows: Sequence[int] | np.ndarray | None = None, workers: int = 0
    ) -> BatchIterator:
        """The examples of a split in their order, once; an example's id is its number.

        Where examples are packed, the order is that of the plan, and the metrics of the split are the same. The last
        batch is filled up with examples of id -1, without inputs, whose targets weigh 0. `Batch.step` counts
        the batches. Arguments as in `train_batches`; starting worker processes takes seconds, so `workers` pays only
        for large splits.
        """
        size = len(self._source(split))
        if not self.packing:
            once, steps = SequentialSampler(size, batch_size), -(-size // batch_size)
            return self._iterate(self._function(split, once, batch_size, rows, {}, {}), 0, steps, workers)
        window = self.packing.config.window
        packed = self.packing.order(
            SequentialSampler(size, window),
            self._planned_lengths(split, self.packing),
            batch_size,
            self.seed,
            windows=-(-size // window),
        )
        return self._iterate(self._function(split, packed, batch_size, rows, {}, {}), 0, packed.steps, workers)

    def examples_per_step(self, split: str, batch_size: int) -> float:
        """How many examples a training batch has, on average where examples are packed."""
        if not self.packing:
            return batch_size
        return self._packed_order(split, batch_size, self.packing).examples_per_row * self.packing.rows(batch_size)

    def _source(self, split: str) -> Source:
        if split not in self._sources:
            check_split(split, self.dataset.splits)
            source = self.dataset.source(split)
            if not len(source):
                raise UserError("data", f"the split {split!r} has no examples", "choose another, or prepare it anew")
            self._sources[split] = source
        return self._sources[split]

    def _train_function(self, split: str, batch_size: int, rows: Sequence[int] | np.ndarray | None) -> BatchFunction:
        _check_batch_size(batch_size)
        for augmentations in self.augment.values():
            for augmentation in augmentations:
                if hasattr(augmentation, "open"):
                    augmentation.open()
        if self.packing:
            order: IndexSampler = self._packed_order(split, batch_size, self.packing)
        else:
            order = self._stream(split, batch_size)
        return self._function(split, order, batch_size, rows, self.modality_dropout, self.augment)

    def _stream(self, split: str, batch_size: int) -> IndexSampler:
        size = len(self._source(split))
        return make_sampler(self.dataset, split, size, batch_size, self.seed, self.sampling, self.filters)

    def _packed_order(self, split: str, batch_size: int, packing: Packing) -> PackedSampler:
        if self.sampling and any(not isinstance(weight, int | float) for weight in self.sampling.weights.values()):
            problem = "weights over time go by data steps, and examples are packed by windows"
            raise UserError("data.sampling.weights", problem, "give each group one number")
        stream = self._stream(split, packing.config.window)
        return packing.order(stream, self._planned_lengths(split, packing), batch_size, self.seed)

    def _planned_lengths(self, split: str, packing: Packing) -> dict[str, np.ndarray]:
        if split not in self._planned:
            self._planned[split] = packing.planned_lengths(self.dataset, split, len(self._source(split)))
        return self._planned[split]

    def _function(self, split, order, batch_size, rows, modality_dropout, augment) -> BatchFunction:
        _check_batch_size(batch_size)
        source, slots = self._source(split), 1
        make_rows: Callable[[int, BufferPool], Rows] = functools.partial(OwnRows, self.modalities)
        if self.packing:
            batch_size, slots = self.packing.rows(batch_size), self.packing.config.slots
            make_rows = functools.partial(
                self.packing.shared_rows, self._planned_lengths(split, self.packing), slots=slots
            )
        rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        targets = dict(self.dataset.targets)
        return BatchFunction(
            source, list(self.modalities), make_rows, targets, order, rows, slots, self.seed, modality_dropout, augment
        )

    def _iterate(self, batch_of: BatchFunction, start: int, stop: int, workers: int) -> BatchIterator:
        import grain

        # Each element is a whole batch, so how elements are shared out cannot change what is in one.
        batches = grain.MapDataset.range(start, stop).map(batch_of)
        if workers:
            # Grain hands its absl flags to the workers, which fails where nobody has parsed them.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            ahead = max(1, -(-self.prefetch // workers))
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
            iterable = batches.to_iter_dataset(_read_options(1, 1)).mp_prefetch(options)
        else:
            # One thread: most of the work holds the interpreter's lock, and two together took 1.4 times as long as one.
            iterable = batches.to_iter_dataset(_read_options(min(1, self.prefetch), self.prefetch))
        return BatchIterator(iter(iterable), self._note)

    def _note(self, batch: Batch, troubles: Sequence[str]) -> None:
        """Counts what was broken in a batch that is handed out, and gives up where most of the data is."""
        self._seen += int((batch.ids >= 0).sum())
        for trouble in troubles:
            if self.broken < _BROKEN_RECORDS_TO_LOG:
                logging.warning("Broken data, taken as absent: %s", trouble)
            self.broken += 1
        if troubles and self._seen >= _ENOUGH_RECORDS and self.broken * 2 > self._seen:
            raise RuntimeError(f"{self.broken} inputs of {self._seen} records are broken; the last: {troubles[-1]}")


class BatchIterator:
    """An iterator of batches that holds threads or processes until it is closed."""

    def __init__(self, iterator: Any, note: Callable[[Batch, Sequence[str]], None]):
        self._iterator, self._note = iterator, note

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        batch, troubles = next(self._iterator)
        self._note(batch, troubles)
        return batch

    def close(self) -> None:
        """Ends the threads or processes; may be called twice."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError("train.batch_size", f"{batch_size} examples make no batch", "give at least 1")


def _read_options(threads: int, buffer: int):
    import grain

    # The default buffer holds 500 elements, which are whole batches here.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)


def fingerprint(batch: Batch) -> str:
    """The sha256 of everything in a batch: names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)} ".encode() + array.tobytes())
    return digest.hexdigest()


def prefetch_to_device(
    batches: Iterable[Batch], place: Callable[[Batch], Batch], size: int = 2
) -> Generator[Batch, None, None]:
    """Yields `place(batch)` for each batch, having called it `size` batches ahead.

    `place` starts a transfer and returns at once, as `jax.device_put` does, so that transfers overlap the steps before
    them. An exception of `batches` is raised after the batches before it. `batches` is closed at the end, however it
    comes; close the generator if you leave it early.
    """
    source = iter(batches)
    ahead: collections.deque[Batch] = collections.deque()
    failure: BaseException | None = None
    exhausted = False
    try:
        while True:
            while not exhausted and len(ahead) < size:
                try:
                    ahead.append(place(next(source)))
                except StopIteration:
                    exhausted = True
                except Exception as error:
                    failure, exhausted = error, True
            if not ahead:
                break
            yield ahead.popleft()
        if failure is not None:
            raise failure
    finally:
        close = getattr(batches, "close", None) or getattr(source, "close", None)
        if close is not None:
            close()

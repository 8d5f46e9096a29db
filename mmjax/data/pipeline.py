"""Input pipeline from records to batches: a batch is a pure function of (seed, data step).

Hosts, worker processes, threads and devices only divide the computation of its rows. The pipeline therefore has no
state to checkpoint: a resumed run requests batches from its data step on. `mmjax.data.samplers` selects the records.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from mmjax.data.batching import MAX_STEP, BatchFunction, InvalidTarget, ReadError
from mmjax.data.buffer_pool import BufferPool
from mmjax.data.dataset import Dataset, Source, check_split
from mmjax.data.packed_sampler import PackedSampler
from mmjax.data.packing import Packing
from mmjax.data.rows import PaddedRows, Rows
from mmjax.data.samplers import IndexSampler, SequentialSampler
from mmjax.data.sampling import FilterConfig, SamplingConfig, make_sampler
from mmjax.data.worker_processes import WorkerMonitor, init_worker, parent_imports
from mmjax.errors import UserError, nearest
from mmjax.modalities import Modality
from mmjax.modalities.augmentation import Augmentation
from mmjax.tokens import Batch

MAX_BROKEN = 0.01
"""Default of the fraction of a split's records that may be unreadable."""

_MAX_LOGGED_ERRORS = 10


class Pipeline:
    """Builds training and evaluation batches from a dataset's records.

    Args:
      dataset: source of the records.
      modalities: {input name: modality that processes it}; other inputs of the dataset are ignored.
      seed: seed of shuffling, modality dropout and augmentation.
      modality_dropout: {input name: dropout rate} in training; draws depend on (seed, data step, position in the
        batch). No example loses all of its inputs; see `mmjax.data.dataset.sample_dropped`.
      augment: {input name: augmentations, applied in order to its raw data in training}; draws depend on
        (seed, data step, position in the batch) too.
      sampling: sampling proportions of training; None samples uniformly. See `mmjax.data.sampling`.
      filters: {index column: filter} of training.
      packing: packs several examples into each row; None uses one row per example.
      workers: number of processes that make training batches; 0 uses a thread of this process.
      prefetch: number of batches to make ahead.
      max_broken: fraction of a split's records that may be unreadable.

    Attributes:
      broken: {split: indices of its unreadable records in the batches yielded so far}. A record with one unreadable
        input is among them. Unreadable inputs are masked.

    Raises:
      UserError: if `modalities` or `modality_dropout` names an unknown input.
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
        max_broken: float = MAX_BROKEN,
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
        self.dataset, self.modalities, self.seed = dataset, dict(modalities), seed
        self.modality_dropout, self.augment = dict(modality_dropout or {}), dict(augment or {})
        self.workers, self.prefetch = workers, prefetch
        self.sampling, self.filters, self.packing = sampling, dict(filters or {}), packing
        self.max_broken = max_broken
        self.broken: dict[str, set[int]] = {}
        self._sources: dict[str, Source] = {}
        self._lengths_cache: dict[str, dict[str, np.ndarray]] = {}

    def size(self, split: str) -> int:
        """Returns the number of examples of a split. Raises UserError if it is empty or cannot be packed."""
        if self.packing:
            self._planned_lengths(split, self.packing)
        return len(self._source(split))

    def has_target(self, split: str, target: str) -> bool:
        """Returns True if at least one record of a split has the target. Reads records until one is found."""
        source = self._source(split)
        # In random order, because records without the target may be adjacent.
        order = np.random.default_rng(0).permutation(len(source))
        for index in order:
            # The evaluation counts unreadable records.
            with contextlib.suppress(Exception):
                if source[int(index)].targets.get(target) is not None:
                    return True
        return False

    def train_batches(
        self, split: str, batch_size: int, start_step: int = 0, rows: Sequence[int] | np.ndarray | None = None
    ) -> BatchIterator:
        """Iterates endlessly over the batches of data steps `start_step`, `start_step` + 1, …

        Args:
          split: split name.
          batch_size: size of the global batch, B.
          start_step: first data step.
          rows: rows of the global batch to make, by default all. A batch has B rows, or B / slots if packed.

        Returns:
          An iterator of batches of NumPy arrays with the examples of these rows. Close it, or use it in a `with`
          statement. An example's id is index + epoch * split size, with the epoch wrapped to keep ids within int32. Ids
          are therefore unique within a batch, even if the batch is larger than the split.
        """
        batch_function = self._train_function(split, batch_size, rows)
        return self._iterate(split, batch_function, start_step, MAX_STEP, self.workers)

    def batch_at(self, split: str, batch_size: int, step: int, rows: Sequence[int] | np.ndarray | None = None) -> Batch:
        """Returns the batch that `train_batches` yields for data step `step`, computed synchronously."""
        batch, errors = self._train_function(split, batch_size, rows)(step)
        self._count_errors(split, errors)
        return batch

    def ids_at(self, split: str, batch_size: int, step: int) -> np.ndarray:
        """Returns the example ids of the global batch at data step `step`, int32 [B], without reading records."""
        ids = self._train_function(split, batch_size, None).ids(step)
        return ids[ids >= 0]

    def evaluation_batches(
        self, split: str, batch_size: int, rows: Sequence[int] | np.ndarray | None = None, workers: int = 0
    ) -> BatchIterator:
        """Iterates once over the examples of a split in order; an example's id is its index.

        Packing changes the order but not the metrics of the split. The last batch is padded with examples of id -1,
        which have no inputs and target weight 0. `Batch.step` is the index of the batch. Arguments are those of
        `train_batches`; worker processes take seconds to start, so `workers` pays off only for large splits.
        """
        size = len(self._source(split))
        if not self.packing:
            sampler, steps = SequentialSampler(size, batch_size), -(-size // batch_size)
            return self._iterate(split, self._function(split, sampler, batch_size, rows, {}, {}), 0, steps, workers)
        window = self.packing.config.window
        packed = self.packing.sampler(
            SequentialSampler(size, window),
            self._planned_lengths(split, self.packing),
            batch_size,
            self.seed,
            windows=-(-size // window),
        )
        return self._iterate(split, self._function(split, packed, batch_size, rows, {}, {}), 0, packed.steps, workers)

    def examples_per_step(self, split: str, batch_size: int) -> float:
        """Returns the number of examples of a training batch; the mean if packed."""
        if not self.packing:
            return batch_size
        return self._packed_sampler(split, batch_size, self.packing).examples_per_row * self.packing.rows(batch_size)

    def _source(self, split: str) -> Source:
        if split not in self._sources:
            check_split(split, self.dataset.splits)
            source = self.dataset.source(split)
            if not len(source):
                raise UserError(
                    "data", f"the split {split!r} has no examples", "choose another split, or prepare the data again"
                )
            self._sources[split] = source
        return self._sources[split]

    def _train_function(self, split: str, batch_size: int, rows: Sequence[int] | np.ndarray | None) -> BatchFunction:
        _check_batch_size(batch_size)
        for augmentations in self.augment.values():
            for augmentation in augmentations:
                if hasattr(augmentation, "open"):
                    augmentation.open()
        if self.packing:
            sampler: IndexSampler = self._packed_sampler(split, batch_size, self.packing)
        else:
            sampler = self._sampler(split, batch_size)
        return self._function(split, sampler, batch_size, rows, self.modality_dropout, self.augment)

    def _sampler(self, split: str, batch_size: int) -> IndexSampler:
        size = len(self._source(split))
        return make_sampler(self.dataset, split, size, batch_size, self.seed, self.sampling, self.filters)

    def _packed_sampler(self, split: str, batch_size: int, packing: Packing) -> PackedSampler:
        if self.sampling and any(not isinstance(weight, int | float) for weight in self.sampling.weights.values()):
            problem = "packing does not support weight schedules, which count data steps instead of windows"
            raise UserError("data.sampling.weights", problem, "give each group a constant weight")
        stream = self._sampler(split, packing.config.window)
        return packing.sampler(stream, self._planned_lengths(split, packing), batch_size, self.seed)

    def _planned_lengths(self, split: str, packing: Packing) -> dict[str, np.ndarray]:
        if split not in self._lengths_cache:
            self._lengths_cache[split] = packing.planned_lengths(self.dataset, split, len(self._source(split)))
        return self._lengths_cache[split]

    def _function(self, split, sampler, batch_size, rows, modality_dropout, augment) -> BatchFunction:
        _check_batch_size(batch_size)
        source, slots = self._source(split), 1
        make_rows: Callable[[int, BufferPool], Rows] = functools.partial(PaddedRows, self.modalities)
        if self.packing:
            batch_size, slots = self.packing.rows(batch_size), self.packing.config.slots
            lengths = self._planned_lengths(split, self.packing)
            make_rows = functools.partial(self.packing.packed_rows, lengths, slots=slots)
        rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        names, targets = list(self.modalities), dict(self.dataset.targets)
        return BatchFunction(
            source, names, make_rows, targets, sampler, rows, slots, self.seed, modality_dropout, augment
        )

    def _iterate(self, split: str, batch_function: BatchFunction, start: int, stop: int, workers: int) -> BatchIterator:
        import grain

        count_errors = functools.partial(self._count_errors, split)

        # Each element is a whole batch, so its content cannot depend on the assignment of elements to workers.
        batches = grain.MapDataset.range(start, stop).map(batch_function)
        if workers:
            # Grain passes its absl flags to the workers, which fails for unparsed flags.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            buffer_size = max(1, -(-self.prefetch // workers))
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer_size)
            iterable = batches.to_iter_dataset(_read_options(1, 1)).mp_prefetch(options, init_worker)
        else:
            # One thread: most of the work holds the GIL, and two threads took 1.4 times as long as one.
            iterable = batches.to_iter_dataset(_read_options(min(1, self.prefetch), self.prefetch))
        return BatchIterator(iter(iterable), count_errors, workers)

    def _count_errors(self, split: str, errors: Sequence[ReadError | InvalidTarget]) -> None:
        """Logs unreadable records and adds them to `broken`.

        Raises:
          UserError: if a target does not fit its spec, or more than `max_broken` of the records are unreadable.
        """
        broken = self.broken.setdefault(split, set())
        for error in errors:
            if isinstance(error, InvalidTarget):
                raise UserError("data", error, "correct it, or make the target missing")
            if len(broken) < _MAX_LOGGED_ERRORS and error.record not in broken:
                logging.warning("Unreadable input, treated as absent: %s", error.message)
            broken.add(error.record)
            if len(broken) > self.max_broken * len(self._source(split)):
                unreadable = f"{len(broken):,} of {len(self._source(split)):,} records of {split!r} are unreadable"
                problem = f"{unreadable}, more than the fraction data.max_broken = {self.max_broken:g}; {error.message}"
                raise UserError("data", problem, "prepare the data again, restore it from a copy, or raise the limit")


class BatchIterator:
    """Iterator over batches. Owns threads or processes until it is closed."""

    def __init__(
        self, iterator: Any, count_errors: Callable[[Sequence[ReadError | InvalidTarget]], None], workers: int = 0
    ):
        self._iterator, self._count_errors = iterator, count_errors
        self._resources = contextlib.ExitStack()
        self._monitor: WorkerMonitor | None = None
        if workers:
            # Grain starts the processes at the first batch, in threads of its own.
            self._resources.enter_context(parent_imports())
            self._monitor = WorkerMonitor()
            self._resources.callback(self._monitor.close)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        try:
            batch, errors = next(self._iterator)
        except RuntimeError as error:
            if self._monitor is None or "terminated unexpectedly" not in str(error):
                raise
            raise self._monitor.error(str(error).partition("exit code ")[2].partition(".")[0]) from error
        self._count_errors(errors)
        return batch

    def close(self) -> None:
        """Stops the threads or processes. Idempotent."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            self._resources.close()

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError("train.batch_size", f"{batch_size} is too small", "give at least 1")


def _read_options(threads: int, buffer: int):
    import grain

    # Grain's default buffer of 500 elements is too large: an element is a whole batch.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)


def fingerprint(batch: Batch) -> str:
    """Returns the SHA-256 of a batch: names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {np.shape(leaf)} ".encode() + array.tobytes())
    return digest.hexdigest()


def prefetch_to_device(
    batches: Iterable[Batch], transfer: Callable[[Batch], Batch], size: int = 2
) -> Generator[Batch, None, None]:
    """Yields `transfer(batch)` for each batch, keeping up to `size` transfers in flight.

    `transfer` must be asynchronous, like `jax.device_put`, so that transfers overlap earlier steps. An exception from
    `batches` is raised after all batches before it are yielded. `batches` is closed when the generator ends or is
    closed; close the generator if you stop early.
    """
    source = iter(batches)
    queue: collections.deque[Batch] = collections.deque()
    failure: BaseException | None = None
    exhausted = False
    try:
        while True:
            while not exhausted and len(queue) < size:
                try:
                    queue.append(transfer(next(source)))
                except StopIteration:
                    exhausted = True
                except Exception as error:
                    failure, exhausted = error, True
            if not queue:
                break
            yield queue.popleft()
        if failure is not None:
            raise failure
    finally:
        close = getattr(batches, "close", None) or getattr(source, "close", None)
        if close is not None:
            close()

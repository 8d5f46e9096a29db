"""A batch depends only on the seed and the data step."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from mmjax.data.dataset import Record, sample_dropped
from mmjax.data.pipeline import Pipeline, fingerprint, prefetch_to_device
from mmjax.errors import UserError
from mmjax.modalities import Audio, Image, Text
from mmjax.tokens import TargetSpec


@dataclasses.dataclass
class Toy:
    """Dataset whose record i holds i in every input; every fourth lacks its sound, every fifth its label."""

    size: int = 37
    broken: tuple[int, ...] = ()

    splits = ("train", "test")
    inputs = {"picture": "image", "sound": "audio", "words": "text"}
    targets = {"label": TargetSpec((), "int32", tuple("0123456789")), "amount": TargetSpec((2,), "float32")}

    def source(self, split: str) -> Toy:
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            raise OSError("disk on fire")
        sound = None if index % 4 == 0 else (np.full(3 + index, 100, np.int16), 100)
        picture = np.full((4, 4), index, np.uint8)
        label = None if index % 5 == 0 else index % 10
        return Record(
            {"picture": picture, "sound": sound, "words": str(index)}, {"label": label, "amount": [index, 0.5]}
        )


def modalities():
    return {
        "picture": Image(Image.Config(size=(4, 4), channels=1, mean=(0.0,), std=(1.0,))),
        "sound": Audio(Audio.Config(sample_rate=100, seconds=0.5, normalise="none")),
        "words": Text(Text.Config(length=4)),
    }


def pipeline(dataset=None, **options) -> Pipeline:
    return Pipeline(Toy() if dataset is None else dataset, modalities(), **{"seed": 3, **options})


def numbers(batch) -> list[int]:
    """Record indices of a batch, decoded from its images."""
    return np.rint(batch.inputs["picture"].values[:, 0, 0, 0] * 255).astype(int).tolist()


def take(pipe: Pipeline, count: int, batch_size: int = 8, start: int = 0, rows=None) -> list:
    with pipe.train_batches("train", batch_size, start, rows) as batches:
        return [next(batches) for _ in range(count)]


ABSENT = {"picture": 0.3, "sound": 0.3, "words": 0.3}


class TestTraining:
    def test_an_epoch_holds_each_record_once_and_the_next_another_order(self):
        seen = [number for batch in take(pipeline(), 37) for number in numbers(batch)]
        epochs = [seen[37 * epoch : 37 * (epoch + 1)] for epoch in range(8)]
        assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 8

    def test_the_seed_decides_the_order(self):
        assert numbers(take(pipeline(), 1)[0]) == numbers(take(pipeline(), 1)[0])
        assert numbers(take(pipeline(), 1)[0]) != numbers(take(pipeline(seed=4), 1)[0])

    def test_a_run_that_starts_later_sees_the_same_batches(self):
        pipe = pipeline(modality_dropout=ABSENT)
        whole = [fingerprint(batch) for batch in take(pipe, 12)]
        assert [fingerprint(batch) for batch in take(pipe, 5, start=7)] == whole[7:]
        assert [fingerprint(pipe.batch_at("train", 8, step)) for step in range(12)] == whole

    @pytest.mark.parametrize("parts", [1, 2, 4])
    def test_rows_made_apart_make_the_same_batch_together(self, parts):
        whole = take(pipeline(modality_dropout=ABSENT), 3, start=5)
        by_part = [
            take(pipeline(modality_dropout=ABSENT), 3, start=5, rows=np.arange(8)[part::parts]) for part in range(parts)
        ]
        order = np.argsort(np.concatenate([np.arange(8)[part::parts] for part in range(parts)]))

        def join(*leaves):
            return np.concatenate(leaves)[order] if leaves[0].ndim else leaves[0]

        for step, batch in enumerate(whole):
            joined = jax.tree.map(join, *[part[step] for part in by_part])
            assert fingerprint(joined) == fingerprint(batch)

    @pytest.mark.parametrize("prefetch", [0, 1, 5])
    def test_how_many_batches_are_made_ahead_changes_nothing(self, prefetch):
        ahead = take(pipeline(prefetch=prefetch), 4)
        assert [fingerprint(batch) for batch in ahead] == [fingerprint(batch) for batch in take(pipeline(), 4)]

    def test_worker_processes_change_nothing(self):
        # In a separate process, as a user's script runs it: without absl, and it must exit by itself.
        code = (
            "import sys; sys.path[:0] = sys.argv[1:]\n"
            "import test_pipeline as t\n"
            "if __name__ == '__main__':\n"
            "    for workers in (0, 2):\n"
            "        toy, options = t.Toy(broken=(7,)), {'workers': workers, 'max_broken': 0.1}\n"
            "        pipe = t.pipeline(toy, modality_dropout=t.ABSENT, **options)\n"
            "        print([t.fingerprint(batch) for batch in t.take(pipe, 6, start=3)], pipe.broken)\n"
        )
        folder = __file__.rpartition("/")[0]
        result = subprocess.run(
            [sys.executable, "-c", code, folder, folder.rpartition("/")[0]], capture_output=True, text=True, timeout=240
        )
        assert result.returncode == 0, result.stderr
        without, with_two = result.stdout.splitlines()
        assert without == with_two and without.endswith(" {'train': {7}}")

    def test_ids_name_the_record_and_differ_where_a_batch_exceeds_the_split(self):
        batch = pipeline().batch_at("train", 100, 2)
        assert (batch.ids % 37).tolist() == numbers(batch)
        assert len(set(batch.ids.tolist())) == 100 and batch.ids.dtype == np.int32
        assert batch.step == 2 and batch.step.dtype == np.int32

    def test_ids_stay_within_32_bits_after_very_many_epochs(self):
        batch = pipeline().batch_at("train", 1000, 2_000_000_000)
        assert (batch.ids >= 0).all() and (batch.ids % 37).tolist() == numbers(batch)

    def test_missing_inputs_are_masked_and_missing_targets_have_weight_0(self):
        for batch in take(pipeline(), 5):
            for slot, number in enumerate(numbers(batch)):
                sound = batch.inputs["sound"]
                assert sound.mask[slot].sum() == (0 if number % 4 == 0 else 3 + number)
                assert bool(sound.present[slot]) == (number % 4 != 0)
                label = batch.targets["label"]
                assert label.weight[slot] == (number % 5 != 0) and label.values[slot] == (number % 10) * (
                    number % 5 != 0
                )
                assert batch.targets["amount"].values[slot].tolist() == [number, 0.5]
            assert batch.targets["label"].weight.dtype == np.float32

    def test_modalities_are_dropped_by_their_rates_but_never_all(self):
        pipe = pipeline(modality_dropout={"picture": 0.5, "sound": 0.25})
        batch = pipe.batch_at("train", 1500, 0)
        rate = 1 - batch.inputs["picture"].mask.mean()
        assert rate == pytest.approx(0.5, abs=0.04)
        assert batch.inputs["words"].present.all()
        everything = pipeline(modality_dropout=dict.fromkeys(ABSENT, 0.99)).batch_at("train", 500, 0)
        present = np.stack([everything.inputs[name].present for name in ABSENT])
        assert present.any(axis=0).all() and present.sum(axis=0).mean() < 1.1

    def test_only_training_drops_modalities(self):
        with pipeline(modality_dropout=dict.fromkeys(ABSENT, 0.99)).evaluation_batches("test", 37) as batches:
            assert next(batches).inputs["picture"].present.all()


class TestEvaluation:
    @pytest.mark.parametrize("batch_size", [1, 8, 37, 50])
    def test_each_record_comes_once_in_order_and_the_rest_is_padding(self, batch_size):
        with pipeline().evaluation_batches("test", batch_size) as batches:
            result = list(batches)
        assert len(result) == -(-37 // batch_size)
        assert all(batch.size == batch_size for batch in result)
        ids = np.concatenate([batch.ids for batch in result])
        assert ids[:37].tolist() == list(range(37)) and (ids[37:] == -1).all()
        for batch in result:
            padding = batch.ids < 0
            for x in batch.inputs.values():
                assert not x.present[padding].any() and not x.values[padding].any()
            assert not any(target.weight[padding].any() for target in batch.targets.values())

    def test_processes_share_the_rows(self):
        with pipeline().evaluation_batches("test", 8, rows=[1, 3]) as batches:
            ids = [batch.ids.tolist() for batch in batches]
        assert ids == [[1, 3], [9, 11], [17, 19], [25, 27], [33, 35]]


class TestTrouble:
    def test_a_broken_record_is_absent_and_counted(self):
        pipe = pipeline(Toy(broken=(5, 6)), max_broken=0.1)
        batch = pipe.batch_at("train", 37, 0)
        gone = np.isin(batch.ids, [5, 6])
        assert pipe.broken == {"train": {5, 6}} and gone.sum() == 2
        assert not any(x.present[gone].any() for x in batch.inputs.values())
        assert not any(target.weight[gone].any() for target in batch.targets.values())
        assert batch.inputs["picture"].present[~gone].all()

    def test_a_broken_input_leaves_the_others(self):
        class Odd(Toy):
            def __getitem__(self, index):
                record = super().__getitem__(index)
                bad = {"picture": np.zeros((2, 2, 9), np.uint8), "sound": (np.array([np.inf]), 100)}
                return dataclasses.replace(record, inputs={**record.inputs, **bad}) if index == 3 else record

        pipe = pipeline(Odd(), max_broken=0.1)
        batch = pipe.batch_at("train", 37, 0)
        slot = int(np.flatnonzero(batch.ids == 3)[0])
        assert pipe.broken == {"train": {3}}
        assert [bool(batch.inputs[name].present[slot]) for name in ("picture", "sound", "words")] == [
            False,
            False,
            True,
        ]
        assert np.isfinite(batch.inputs["sound"].values).all()

    def test_more_broken_records_than_the_limit_in_any_split_are_an_error(self):
        broken = Toy(size=200, broken=(5, 60, 61))
        at_limit, above = pipeline(broken, max_broken=0.015), pipeline(broken)
        for _ in range(2):  # in a second epoch, the same records count once
            with at_limit.evaluation_batches("test", 50) as batches:
                assert len(list(batches)) == 4
        take(at_limit, 60)
        assert at_limit.broken == {"train": {5, 60, 61}, "test": {5, 60, 61}}
        reason = "3 of 200 records of 'test' are unreadable.*data.max_broken = 0.01"
        with above.evaluation_batches("test", 50) as batches, pytest.raises(UserError, match=reason):
            list(batches)
        with pytest.raises(UserError, match="'train' are unreadable.*disk on fire"):
            take(above, 60)

    def test_a_broken_record_does_not_hide_the_targets_of_others(self):
        assert pipeline(Toy(broken=tuple(range(36)))).has_target("train", "label")
        assert not pipeline(Toy(broken=tuple(range(37)))).has_target("train", "label")

    def test_an_empty_split_is_a_user_error(self):
        with pytest.raises(UserError, match="no examples"):
            pipeline(Toy(size=0)).batch_at("train", 4, 0)

    def test_an_unknown_split_is_a_user_error(self):
        with pytest.raises(UserError, match="did you mean 'train'"):
            pipeline().train_batches("trian", 4)

    def test_an_unknown_input_is_a_user_error(self):
        with pytest.raises(UserError, match="did you mean 'sound'"):
            pipeline(modality_dropout={"sounds": 0.1})
        with pytest.raises(UserError, match="did you mean 'words'"):
            Pipeline(Toy(), {"word": modalities()["words"]})

    def test_no_thread_is_left_after_an_iterator_is_closed(self):
        before = threading.active_count()
        for _ in range(3):
            batches = pipeline().train_batches("train", 8)
            next(batches)
            batches.close()
            batches.close()
        # Grain cancels its threads without joining them.
        deadline = time.monotonic() + 120
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before
        with pytest.raises(StopIteration):
            next(batches)


class TestDropped:
    def test_the_rate_of_one_input_does_not_move_the_draws_of_another(self):
        def drops(rates):
            return [sample_dropped(rates, ["a", "b", "c"], np.random.default_rng(i)) & {"a"} for i in range(50)]

        assert drops({"a": 0.3, "b": 0.0}) == drops({"a": 0.3, "b": 0.2})

    def test_modality_dropout_ignores_absent_inputs(self):
        for i in range(50):
            assert sample_dropped({"a": 0.9, "b": 0.9}, ["b"], np.random.default_rng(i)) == set()
            assert sample_dropped({"a": 0.9}, [], np.random.default_rng(i)) == set()


class TestPrefetch:
    def test_batches_are_placed_ahead_and_arrive_in_order(self):
        placed = []

        def place(batch):
            placed.append(batch)
            return batch * 10

        result = prefetch_to_device(iter(range(5)), place, size=3)
        assert next(result) == 0 and placed == [0, 1, 2]
        assert list(result) == [10, 20, 30, 40]

    def test_an_error_follows_earlier_batches_and_closes_the_source(self):
        closed = []

        def source():
            try:
                yield from (1, 2, 3)
                raise OSError("gone")
            finally:
                closed.append(True)

        received = []
        with pytest.raises(OSError, match="gone"):
            for batch in prefetch_to_device(source(), lambda batch: batch, size=2):
                received.append(batch)
        assert received == [1, 2, 3] and closed

    def test_leaving_early_closes_the_source(self):
        batches = pipeline().train_batches("train", 8)
        ahead = prefetch_to_device(batches, jax.device_put)
        assert isinstance(next(ahead).ids, jax.Array)
        ahead.close()
        with pytest.raises(StopIteration):
            next(batches)


def test_the_fingerprint_sees_every_part_of_a_batch():
    batch = pipeline().batch_at("train", 4, 0)
    leaves, structure = jax.tree.flatten(batch)
    prints = {fingerprint(batch)}
    for index, leaf in enumerate(leaves):
        changed = np.array(leaf)
        changed.reshape(-1)[-1] = ~changed.reshape(-1)[-1] if changed.dtype == bool else changed.reshape(-1)[-1] + 1
        prints.add(fingerprint(structure.unflatten([*leaves[:index], changed, *leaves[index + 1 :]])))
    assert len(prints) == len(leaves) + 1

"""Order of training: exact sampling shares, whole epochs, a function of (seed, data step) alone."""

from __future__ import annotations

import collections
import fractions
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.samplers import _CHUNK, MixtureSampler, SequentialSampler

ROWS = np.arange(16)
GROUPS = {"few": np.arange(3), "many": np.arange(3, 40), "some": np.arange(40, 52)}
CONSTANT = {"few": [(0, 1.0)], "many": [(0, 4.0)], "some": [(0, 2.0)]}
CHANGING = {"few": [(0, 1.0)], "many": [(100, 0.0), (1500, 8.0)], "some": [(0, 0.0), (50, 2.0)]}


def sampled(weights=CONSTANT, seed=5, batch_size=16):
    return MixtureSampler(GROUPS, weights, batch_size, seed)


def name_of(number: int) -> str:
    return next(name for name, numbers in GROUPS.items() if number in numbers)


@pytest.mark.parametrize("weights", [CONSTANT, CHANGING], ids=["constant", "changing"])
def test_proportions_are_exact_to_within_one_record_per_earlier_group(weights):
    order = sampled(weights)
    given_so_far = collections.Counter()
    due = dict.fromkeys(GROUPS, fractions.Fraction(0))
    for step in range(_CHUNK + 200):
        share = order.quotas(step)
        assert sum(share.values()) == 16 and min(share.values()) >= 0
        given_so_far.update(share)
        at = {
            name: fractions.Fraction(float(np.interp(step, *np.transpose(points)))) for name, points in weights.items()
        }
        for place, name in enumerate(GROUPS):
            due[name] += 16 * at[name] / sum(at.values())
            assert abs(given_so_far[name] - due[name]) <= place + 1, (step, name)
    if weights is CONSTANT:
        total = 16 * (_CHUNK + 200)
        assert [given_so_far[name] for name in GROUPS] == pytest.approx(
            [total / 7, total * 4 / 7, total * 2 / 7], abs=2
        )


@pytest.mark.parametrize("weights", [CONSTANT, CHANGING], ids=["constant", "changing"])
def test_each_epoch_of_a_group_holds_each_of_its_records_once(weights):
    order = sampled(weights)
    seen = collections.defaultdict(list)
    for step in range(300):
        numbers, epochs = order(step, ROWS)
        for number, epoch in zip(numbers.tolist(), epochs.tolist(), strict=True):
            seen[name_of(number), epoch].append(number)
    last = {name: max(epoch for other, epoch in seen if other == name) for name in GROUPS}
    whole = 0
    for (name, epoch), numbers in seen.items():
        assert len(set(numbers)) == len(numbers)
        if epoch < last[name]:
            assert sorted(numbers) == GROUPS[name].tolist()
            whole += 1
    assert whole > 100


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    data=st.data(),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2 * _CHUNK + 5),
)
def test_batches_depend_on_the_step_alone(sizes, data, batch_size, seed, step):
    ends = np.cumsum(sizes)
    groups = {str(which): np.arange(end - size, end) for which, (size, end) in enumerate(zip(sizes, ends, strict=True))}
    weight = st.floats(0, 10, allow_subnormal=False)
    points = {name: [(0, data.draw(weight)), (data.draw(st.integers(1, 3000)), data.draw(weight))] for name in groups}
    points["0"] = [(0, 1.0), (1, 0.5)]
    one = MixtureSampler(groups, points, batch_size, seed)
    another = pickle.loads(pickle.dumps(MixtureSampler(groups, points, batch_size, seed)))
    for earlier in (0, step // 2):
        another(earlier, np.arange(batch_size))
    whole = one(step, np.arange(batch_size))
    assert len(whole[0]) == batch_size and (whole[0] >= 0).all()
    parts = [another(step, np.arange(batch_size)[part::3]) for part in range(3)]
    for mine, all_rows in zip(zip(*parts, strict=True), whole, strict=True):
        joined = np.empty_like(all_rows)
        for part, values in enumerate(mine):
            joined[part::3] = values
        np.testing.assert_array_equal(joined, all_rows)


def test_quotas_of_thirds_are_rounded_to_the_nearest_and_positions_follow_them():
    groups = {"a": np.arange(3), "b": np.arange(3, 9)}
    sampler = MixtureSampler(groups, {"a": [(0, 1.0)], "b": [(0, 2.0)]}, 4, 0)
    assert [tuple(sampler.quotas(step).values()) for step in range(6)] == [(1, 3), (2, 2), (1, 3)] * 2
    epochs = [sampler(step, np.arange(4)) for step in range(3)]
    records, numbers = (np.concatenate(each) for each in zip(*epochs, strict=True))
    # Epoch 1 begins with the last of four positions in "a", and with the last two of eight in "b".
    assert sorted(numbers[records < 3]) == [0, 0, 0, 1] and sorted(numbers[records >= 3]) == [0] * 6 + [1] * 2


def test_groups_are_mixed_within_a_batch():
    order, found = sampled(), []
    for step in range(20):
        names = [name_of(number) for number in order(step, ROWS)[0].tolist()]
        found.append(sum(one != other for one, other in itertools.pairwise(names)))
    assert np.mean(found) > 6, "three consecutive blocks would give 2"


def test_all_weights_of_0_are_refused():
    with pytest.raises(ValueError, match="all weights are 0 at some step; give"):
        sampled({"few": [(0, 1.0), (10, 0.0)], "many": [(0, 0.0)], "some": [(0, 0.0)]})


def test_sequential_order_ends_in_padding():
    order = SequentialSampler(10, 4)
    assert [order(step, np.arange(4))[0].tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    assert order(2, np.array([3, 0]))[0].tolist() == [-1, 8]

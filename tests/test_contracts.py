"""Runs the checks of `contracts.py` on every entry of the tables of encoders, fusions, tasks and loss transforms."""

import pytest

from tests import contracts


# Module scope makes pytest order the tests by part, so that each part's programs are compiled once.
@pytest.fixture(scope="module", params=contracts.PARTS, ids=str)
def part(request):
    return request.param


def test_what_is_absent_changes_nothing(part):
    contracts.check_absence(part)


def test_one_device_gives_what_eight_give(part):
    contracts.check_devices(part)


def test_microbatches_give_what_the_whole_batch_gives(part):
    contracts.check_accumulation(part)


def test_packed_examples_give_what_each_gives_alone(part):
    contracts.check_packing(part)


def test_scanned_layers_give_what_unrolled_layers_give(part):
    contracts.check_scan(part)


def test_bfloat16_is_close_to_float32(part):
    contracts.check_precision(part)


def test_what_is_saved_is_restored_bit_for_bit(part, tmp_path):
    contracts.check_restore(part, tmp_path)


def test_every_parameter_has_a_gradient_and_the_loss_falls(part):
    contracts.check_learning(part)

"""Buffers that successive batches share."""

import pickle

import jax
import numpy as np

from mmjax.data.buffer_pool import BufferPool

SHAPE = (600, 600)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_and_zero_again():
    buffers = BufferPool()
    first = buffers.zeros(SHAPE, np.float32)
    pointer = address(first)
    first[:] = np.nan
    del first
    again = buffers.zeros(SHAPE, np.int32)
    assert address(again) == pointer and again.dtype == np.int32 and again.shape == SHAPE and not again.any()


def test_memory_of_an_array_that_lives_is_not_used():
    buffers = BufferPool()
    first, second = buffers.zeros(SHAPE, np.float32), buffers.zeros(SHAPE, np.float32)
    first[:], second[:] = 1, 2
    assert (first == 1).all() and (second == 2).all()


def test_a_view_keeps_the_memory():
    buffers = BufferPool()
    whole = buffers.zeros(SHAPE, np.float32)
    whole[:] = 1
    part = whole.reshape(-1)[7:].view(np.int32)[::2]
    wanted = part.copy()
    del whole
    buffers.zeros(SHAPE, np.float32)[:] = 2
    np.testing.assert_array_equal(part, wanted)
    pointer = address(part) - 7 * 4
    del part
    arrays = [buffers.zeros(SHAPE, np.float32) for _ in range(2)]
    assert pointer in map(address, arrays)


def test_an_array_on_a_device_keeps_the_memory():
    buffers, size = BufferPool(), 600 * 600 * 4
    # On a CPU, JAX arrays alias aligned NumPy memory.
    block = np.zeros(size + 64, np.uint8)
    start = -address(block) % 64
    buffers._free[size] = [block[start : start + size]]
    values = buffers.zeros(SHAPE, np.float32)
    pointer = address(values)
    values[:] = 1
    on_device = jax.device_put(values)
    assert on_device.unsafe_buffer_pointer() == pointer
    del values
    buffers.zeros(SHAPE, np.float32)[:] = 2
    assert (np.asarray(on_device) == 1).all()


def test_another_process_has_memory_of_its_own():
    buffers = BufferPool()
    buffers.zeros(SHAPE, np.float32)
    assert not pickle.loads(pickle.dumps(buffers))._free

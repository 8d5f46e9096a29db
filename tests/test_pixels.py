"""Statistics of pixels against NumPy in float64, and their memory on large images."""

from __future__ import annotations

import tracemalloc

import numpy as np
import PIL.Image
import pytest

from mmjax.prepare import pixels
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.kinds.image import Picture

FRACTIONS = (0, 0.0005, 0.3, 0.5, 0.9995, 1)


@pytest.mark.parametrize("shape", [(7, 9), (1, 1), (31, 17, 1), (31, 17, 2), (31, 17, 3), (50, 3, 4)])
def test_statistics_in_blocks_are_those_of_the_whole_image(shape, monkeypatch):
    monkeypatch.setattr(pixels, "_BLOCK", 60)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    values = image / 255
    np.testing.assert_allclose(pixels.mean_and_std(image), (values.mean(), values.std()), atol=1e-12)
    rgb = pixels.to_rgb(image)
    grey = rgb.astype(np.float64).mean(axis=2)
    np.testing.assert_allclose(pixels.grey_quantiles(image, FRACTIONS), np.quantile(grey, FRACTIONS), atol=1e-9)
    assert rgb.shape == (*shape[:2], 3)


def test_transparency_is_composited_over_white_as_pillow_does():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 4)).astype(np.uint8)
    white = PIL.Image.new("RGBA", (30, 40), "white")
    white.alpha_composite(PIL.Image.fromarray(image))
    difference = pixels.to_rgb(image).astype(int) - np.asarray(white.convert("RGB"))
    assert np.abs(difference).max() <= 1


def test_digests_differ_by_value_shape_and_dtype():
    image = np.arange(24, dtype=np.uint8)
    images = [image.reshape(4, 6), image.reshape(6, 4), image.reshape(4, 6)[::-1], image.reshape(4, 6).view(np.int8)]
    assert len({pixels.digest(each) for each in images}) == 4
    assert pixels.digest(images[0]) == pixels.digest(images[0].copy())


def test_a_large_image_takes_no_more_than_a_few_copies_of_its_pixels():
    kind, image = KINDS["image"](), np.zeros((3000, 1000, 4), np.uint8)
    image[::7, ::5] = 200
    tracemalloc.start()
    try:
        raw = Picture(image)
        kind.measure(raw), kind.signature(raw), kind.features(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # RGB, and a copy of it where Pillow reads it.
    assert peak < 3 * image.nbytes

"""Image resizing against Pillow, audio resampling against SciPy."""

import math

import numpy as np
import PIL.Image
import pytest
import scipy.signal

from mmjax.modalities.filters import resample, resize


def by_pillow(pixels: np.ndarray, size: tuple[int, int], kind: str, box=None) -> np.ndarray:
    """float32 [height, width, channels], resized by Pillow as one float image per channel, without rounding."""
    planes = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0).astype(np.float32)
    box = box and (box[1], box[0], box[3], box[2])
    method = getattr(PIL.Image.Resampling, kind.upper())
    made = [np.asarray(PIL.Image.fromarray(plane).resize(size[::-1], method, box=box)) for plane in planes]
    return np.stack(made, axis=-1).clip(0, 255)


class TestResize:
    @pytest.mark.parametrize("kind", ["box", "bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("size", [(224, 224), (13, 90), (61, 8), (1, 1)])
    @pytest.mark.parametrize("shape", [(61, 90, 3), (45, 45), (1, 7, 1), (300, 200, 4), (3, 800, 3), (1300, 900, 3)])
    def test_resizing_matches_pillow(self, kind, size, shape):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        made = resize(pixels, size, kind)
        assert made.dtype == np.float32 and made.shape == (*size, *shape[2:])
        np.testing.assert_allclose(made.reshape(*size, -1), by_pillow(pixels, size, kind), atol=2e-4)

    @pytest.mark.parametrize("kind", ["bilinear", "bicubic", "lanczos"])
    def test_resizing_a_box_matches_pillow(self, kind):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        # Pillow keeps the box in float32; use values that are exact there.
        box = (3.25, 10.5, 31.75, 59.0)
        np.testing.assert_allclose(
            resize(pixels, (20, 33), kind, box), by_pillow(pixels, (20, 33), kind, box), atol=2e-4
        )

    def test_nearest_takes_the_pixel_at_the_centre(self):
        # Sizes chosen so that no output centre falls between two pixels.
        pixels = np.random.default_rng(0).integers(0, 256, (41, 61, 3), dtype=np.uint8)
        made = resize(pixels, (11, 27), "nearest")
        rows, columns = (np.arange(11) + 0.5) * 41 / 11, (np.arange(27) + 0.5) * 61 / 27
        np.testing.assert_array_equal(made, pixels[rows.astype(int)][:, columns.astype(int)])
        np.testing.assert_array_equal(made, by_pillow(pixels, (11, 27), "nearest"))

    @pytest.mark.parametrize("kind", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
    def test_a_picture_of_one_colour_keeps_it(self, kind):
        pixels = np.full((31, 17, 3), (0, 200, 255), np.uint8)
        made = resize(pixels, (9, 40), kind, (1.3, 0.2, 30.9, 16.7))
        np.testing.assert_allclose(made, np.broadcast_to(np.float32([0, 200, 255]), (9, 40, 3)), atol=1e-4)

    def test_overshoot_at_edges_is_clipped(self):
        pixels = np.zeros((20, 20), np.uint8)
        pixels[:, 10:] = 255
        made = resize(pixels, (50, 50), "bicubic")
        assert made.min() == 0 and made.max() == 255


class TestResample:
    @pytest.mark.parametrize("count", [0, 1, 5, 777, 44_100])
    @pytest.mark.parametrize("rate", [44_100, 16_000, 8_000, 999])
    @pytest.mark.parametrize("target", [16_000, 8_000, 44_100, 997])
    def test_resampling_matches_scipy_in_float64(self, rate, target, count):
        samples = np.random.default_rng(0).normal(size=count).astype(np.float32)
        divisor = math.gcd(rate, target)
        expected = np.zeros(0)
        if count:
            expected = scipy.signal.resample_poly(samples.astype(np.float64), target // divisor, rate // divisor)
        made = resample(samples, rate, target)
        assert made.dtype == np.float32 and made.shape == expected.shape
        np.testing.assert_allclose(made, expected, atol=1e-6 * np.abs(expected).max(initial=0))

    def test_the_same_rate_changes_nothing(self):
        samples = np.arange(5, dtype=np.float32)
        assert resample(samples, 8_000, 8_000) is samples

    def test_memory_is_a_few_times_that_of_a_sound(self):
        import tracemalloc

        samples = np.zeros(2**20, np.float32)
        resample(samples, 2, 1)
        tracemalloc.start()
        resample(samples, 2, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * samples.nbytes

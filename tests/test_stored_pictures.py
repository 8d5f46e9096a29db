"""Stored images decode exactly as Pillow decodes them, with either decoder."""

from __future__ import annotations

import io
import sys

import numpy as np
import PIL.Image
import pytest

from mmjax.prepare.kinds import KINDS
from mmjax.prepare.kinds import image as image_kind

IMAGE = KINDS["image"]()


def picture(mode: str) -> PIL.Image.Image:
    """Image that is smooth in one half and noise in the other."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (37, 61, 4))
    pixels[:, :30] = np.linspace(0, 255, 30)[None, :, None]
    return PIL.Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def stored(mode: str, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture(mode).save(buffer, form, **options)
    return buffer.getvalue()


def as_pillow_reads(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "quality": 60}, {"progressive": True}])
def test_a_jpeg_comes_back_to_the_last_bit(monkeypatch, mode, options, installed):
    data = stored(mode, "JPEG", **options)
    if installed:
        assert np.array_equal(image_kind._decoded(data), as_pillow_reads(data))
    else:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    restored = IMAGE.restore(data)
    assert restored.dtype == np.uint8
    assert np.array_equal(restored, as_pillow_reads(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_png_comes_back_to_the_last_bit(mode):
    assert np.array_equal(IMAGE.restore(stored(mode, "PNG")), np.asarray(picture(mode)))


def test_what_pillow_reads_with_a_warning_only_is_no_broken_record():
    data = stored("RGB", "JPEG")
    # Extra bytes before the next marker: libjpeg only warns.
    at = data.index(b"\xff\xdb")
    odd = data[:at] + b"\x00\x01\x02" + data[at:]
    assert np.array_equal(IMAGE.restore(odd), as_pillow_reads(odd))


def test_data_that_is_not_an_image_is_an_error():
    for data in (b"\xff\xd8 no JPEG", b"no picture"):
        with pytest.raises((ValueError, OSError)):
            IMAGE.restore(data)

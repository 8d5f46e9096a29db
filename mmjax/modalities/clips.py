"""Clips: frames that are made when they are asked for, from animations, folders of pictures, NPY and video files."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.ImageSequence

from mmjax.errors import UserError
from mmjax.modalities.image import eight_bits
from mmjax.modalities.raw_files import NPY, read_npy

MOST_FRAMES = 128
"""Of a longer clip every second frame is kept, or every fourth, and so on."""

LONGEST_SIDE = 320
"""In pixels; larger frames are scaled down to it."""

_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")


class Clip(NamedTuple):
    """Raw data of a video.

    Attributes:
      frames: uint8 [H, W] or [H, W, C] each; any sequence of them.
      rate: frames in a second, 0 where nobody knows.
    """

    frames: Sequence[np.ndarray]
    rate: float


class Frames(Sequence):
    """Frames that are made one by one when they are asked for, since of most clips only a few are.

    Args:
      count: how many.
      make: makes the frame of a number.
    """

    def __init__(self, count: int, make: Callable[[int], np.ndarray]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        # Without this, a loop over the frames would have no end.
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._make(number)


def as_clip(raw: Any) -> Clip:
    """A clip of (frames, rate); see `Clip`. Raises ValueError where it is none, or has no frames."""
    if not isinstance(raw, tuple) or len(raw) != 2:
        raise ValueError(f"a clip is (frames, rate), not a {type(raw).__name__}")
    frames, rate = raw
    if not len(frames):
        raise ValueError("the clip has no frames")
    if not np.isfinite(rate) or rate < 0:
        raise ValueError(f"the clip has a rate of {rate} frames a second")
    return Clip(frames, float(rate))


def read_clip(data: bytes, name: str) -> Clip:
    """The frames of an animation (GIF, WebP, PNG), of an NPY file uint8 [T, H, W] or [T, H, W, C], or of a video file.

    Args:
      name: of the file, for messages.

    Raises:
      ValueError: if it is none of these, is damaged or cut short.
      UserError: if it is a video file, and the package that reads those is not installed.
    """
    if data.startswith(NPY):
        return clip_of_array(read_npy(data))
    # Pillow takes what there is of a GIF for all of it.
    if data.startswith(b"GIF8") and not data.rstrip(b"\0").endswith(b";"):
        raise ValueError("cut short: a GIF ends with a semicolon")
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            if opened.format in _ANIMATIONS:
                return _read_animation(opened)
    except PIL.UnidentifiedImageError:
        pass  # which a video file is
    # A damaged file raises whatever the decoder of its format trips over, SyntaxError and struct.error included.
    except Exception as error:
        raise ValueError(f"a damaged animation: {error}") from None
    return _read_video(data, name)


def clip_of_array(values: np.ndarray, rate: float = 0.0) -> Clip:
    """A clip of uint8 [T, H, W] or [T, H, W, 1 to 4]. Raises ValueError where the array is another."""
    channels = values.shape[3] if values.ndim == 4 else 1
    if values.dtype != np.uint8 or values.ndim not in (3, 4) or channels not in (1, 2, 3, 4) or not values.size:
        raise ValueError(f"frames are uint8 [T, H, W] or [T, H, W, 1 to 4], not {values.dtype} {list(values.shape)}")
    frames = values[..., 0] if values.shape[3:] == (1,) else values
    return _thinned((functools.partial(np.asarray, frame) for frame in frames), rate)


def clip_of_pictures(files: Iterable[tuple[str, bytes]]) -> Clip:
    """The frames of the pictures in a folder, by their names, in which 2 comes before 10. The rate is unknown.

    Args:
      files: (name, the bytes of a picture) in any order.

    Raises:
      ValueError: if there are none, or one is no whole picture.
    """

    def natural(file: tuple[str, bytes]) -> list[tuple[int, str]]:
        return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", file[0])]

    ordered = sorted(files, key=natural)
    return _thinned((functools.partial(_read_picture, name, data) for name, data in ordered), 0.0)


def read_frame(data: bytes) -> np.ndarray:
    """A frame of its PNG or JPEG file."""
    with PIL.Image.open(io.BytesIO(data)) as opened:
        return eight_bits(opened)


def _read_picture(name: str, data: bytes) -> np.ndarray:
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            return eight_bits(PIL.ImageOps.exif_transpose(opened))
    except Exception as error:
        raise ValueError(f"the frame {name!r} cannot be read: {error}") from None


def _read_animation(opened: PIL.Image.Image) -> Clip:
    milliseconds: list[float] = []

    def frames() -> Iterator[Callable[[], np.ndarray]]:
        for frame in PIL.ImageSequence.Iterator(opened):
            frame.load()
            milliseconds.append(float(frame.info.get("duration", 0) or 0))
            yield functools.partial(eight_bits, frame)

    clip = _thinned(frames(), 1.0)
    seconds = sum(milliseconds) / 1000
    # Thinned out, a clip has fewer frames in the same time.
    return clip._replace(rate=clip.rate * len(milliseconds) / seconds if seconds else 0.0)


def _read_video(data: bytes, name: str) -> Clip:
    try:
        import av
    except ImportError:
        raise UserError("video", f"{name!r} needs the package av", "pip install 'mmjax[video]'") from None
    decoded, end = 0, 0.0

    def frames(stream: Any) -> Iterator[Callable[[], np.ndarray]]:
        nonlocal decoded, end
        for frame in stream.container.decode(stream):
            decoded, end = decoded + 1, max(end, frame.time or 0.0)
            yield functools.partial(_upright, frame)

    try:
        container: Any
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            stream: Any = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
            if not promised and not container.streams.audio and container.duration:
                promised = container.duration / 1_000_000
            begin = float((stream.start_time or 0) * stream.time_base)
            clip = _thinned(frames(stream), rate)
    # Every codec has errors of its own, and sizes that are nonsense make others.
    except Exception as error:
        raise ValueError(f"no video, or a damaged one: {error}") from None
    # Frames may have no time, or last longer than others; a tenth of the clip is no matter of rounding.
    seconds = max(end - begin, decoded / rate) + 1 / rate if rate else end - begin
    if seconds < 0.9 * promised:
        raise ValueError(f"cut short: {decoded:,} frames, {seconds:.1f} of {promised:.1f} seconds")
    return clip


def _upright(frame: Any) -> np.ndarray:
    """uint8 [H, W, 3] as the camera was held."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def _thinned(frames: Iterable[Callable[[], np.ndarray]], rate: float) -> Clip:
    """At most `MOST_FRAMES` of the frames, evenly spread and none too large; the others are not even converted.

    However long the clip is, no more than that is held at once.
    """
    kept: list[np.ndarray] = []
    stride = 1
    for number, make in enumerate(frames):
        if number % stride:
            continue
        if len(kept) == MOST_FRAMES:
            kept, stride = kept[::2], 2 * stride
            if number % stride:
                continue
        kept.append(_scaled(make()))
    if not kept:
        raise ValueError("the clip has no frames")
    return Clip(kept, rate / stride)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    longest = max(pixels.shape[:2])
    if longest <= LONGEST_SIDE:
        return pixels
    height, width = (max(1, round(side * LONGEST_SIDE / longest)) for side in pixels.shape[:2])
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((width, height), PIL.Image.Resampling.BOX, reducing_gap=3.0))

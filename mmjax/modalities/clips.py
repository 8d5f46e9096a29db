"""Video clips as lazily decoded frames, read from animations, image folders, NPY and video files."""

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
from mmjax.modalities.image import check_pixels, open_image, to_uint8
from mmjax.modalities.raw_files import NPY, read_npy

MAX_FRAMES = 128
"""Maximum number of frames kept; longer clips are subsampled with a stride of 2, 4, 8 …"""

MAX_SIDE = 320
"""Maximum height and width in pixels; larger frames are downscaled."""

MAX_VIDEO_PIXELS = 2**25
"""Maximum number of pixels of a video frame, 8K; a decoder keeps several frames."""

# Maximum number of pixels to decode: a small file may declare endless frames. Long clips have this many per byte.
_FREE_PIXELS, _PIXELS_PER_BYTE = 2**31, 10_000
# Containers of video files. Others, such as playlists, may refer to other files and to URLs.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v,flv,asf,ogg,ivf"
_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")


class Clip(NamedTuple):
    """Raw data of a video.

    Attributes:
      frames: sequence of uint8 [H, W] or [H, W, C].
      rate: frames per second, 0 if unknown.
    """

    frames: Sequence[np.ndarray]
    rate: float


class LazyFrames(Sequence):
    """Sequence of frames that are computed on access, because only a few frames of most clips are used.

    Args:
      count: number of frames.
      make: computes the frame at an index.
    """

    def __init__(self, count: int, make: Callable[[int], np.ndarray]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        # Iteration over a Sequence stops at IndexError.
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)


def as_clip(raw: Any) -> Clip:
    """Validates a (frames, rate) tuple and returns it as a `Clip`.

    Raises:
      ValueError: if `raw` is not such a tuple, has no frames, or has an invalid rate.
    """
    if not isinstance(raw, tuple) or len(raw) != 2:
        raise ValueError(f"a clip must be a tuple (frames, rate), not {type(raw).__name__}")
    frames, rate = raw
    if not len(frames):
        raise ValueError("the clip has no frames")
    if not np.isfinite(rate) or rate < 0:
        raise ValueError(f"the clip has an invalid frame rate of {rate} per second")
    return Clip(frames, float(rate))


def read_clip(data: bytes, name: str) -> Clip:
    """Reads an animation (GIF, WebP, PNG), an NPY file uint8 [T, H, W] or [T, H, W, C], or a video file.

    Args:
      data: contents of the file.
      name: file name, for messages.

    Raises:
      ValueError: if the format is unsupported, or the file is damaged or truncated.
      UserError: if it is a video file and the package `av` is not installed.
    """
    if data.startswith(NPY):
        return clip_from_array(read_npy(data))
    # Pillow reads a truncated GIF without an error.
    if data.startswith(b"GIF8") and not data.rstrip(b"\0").endswith(b";"):
        raise ValueError("truncated: the GIF has no trailer byte ';'")
    try:
        with open_image(data) as opened:
            if opened.format in _ANIMATIONS:
                return _read_animation(opened, _max_pixels(data))
    except PIL.UnidentifiedImageError:
        pass  # Not an image: try to read it as a video.
    # Decoders raise many exception types on a damaged file, including SyntaxError and struct.error.
    except Exception as error:
        raise ValueError(f"damaged animation: {error}") from None
    return _read_video(data, name)


def clip_from_array(values: np.ndarray, rate: float = 0.0) -> Clip:
    """Makes a clip from uint8 [T, H, W] or [T, H, W, C] with C from 1 to 4; subsamples and downscales it.

    Raises:
      ValueError: if the dtype or shape is unsupported.
    """
    channels = values.shape[3] if values.ndim == 4 else 1
    if values.dtype != np.uint8 or values.ndim not in (3, 4) or channels not in (1, 2, 3, 4) or not values.size:
        raise ValueError(f"frames must be uint8 [T, H, W] or [T, H, W, C<=4], not {values.dtype} {list(values.shape)}")
    frames = values[..., 0] if values.shape[3:] == (1,) else values
    return _subsample((functools.partial(np.asarray, frame) for frame in frames), rate)


def clip_from_images(files: Iterable[tuple[str, bytes]]) -> Clip:
    """Makes a clip of unknown rate from image files, in natural order of their names (2 before 10).

    Args:
      files: (name, contents) pairs in any order.

    Raises:
      ValueError: if `files` is empty, or an image cannot be read.
    """

    def natural(file: tuple[str, bytes]) -> list[tuple[int, str]]:
        return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", file[0])]

    ordered = sorted(files, key=natural)
    return _subsample((functools.partial(_read_image, name, data) for name, data in ordered), 0.0)


def read_frame(data: bytes) -> np.ndarray:
    """Decodes a frame from PNG or JPEG data to uint8 [H, W] or [H, W, C]."""
    with PIL.Image.open(io.BytesIO(data)) as opened:
        return to_uint8(opened)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Converts to RGB uint8 [H, W, 3], compositing transparency over white."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def encode_frame(pixels: np.ndarray) -> bytes:
    """Encodes a frame as prepared data stores it: JPEG without chroma subsampling; grey frames stay grey."""
    opaque = pixels if pixels.ndim == 2 else to_rgb(pixels)
    buffer = io.BytesIO()
    PIL.Image.fromarray(opaque).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def as_stored(clip: Clip) -> Clip:
    """Returns the clip with frames as in prepared data, lazily compressed to JPEG and decoded."""
    return Clip(LazyFrames(len(clip.frames), lambda index: read_frame(encode_frame(clip.frames[index]))), clip.rate)


def _read_image(name: str, data: bytes) -> np.ndarray:
    try:
        with open_image(data) as opened:
            return to_uint8(PIL.ImageOps.exif_transpose(opened))
    except Exception as error:
        raise ValueError(f"the frame {name!r} cannot be read: {error}") from None


def _max_pixels(data: bytes) -> int:
    """Maximum number of pixels to decode from a file."""
    return max(_FREE_PIXELS, _PIXELS_PER_BYTE * len(data))


def _count_pixels(total: int, limit: int, width: int, height: int) -> int:
    """Adds the pixels of a frame to `total`. Raises ValueError if the sum exceeds `limit`."""
    total += width * height
    if total > limit:
        raise ValueError(f"too large: the frames of a file of this size have more than {limit:,} pixels")
    return total


def _read_animation(opened: PIL.Image.Image, max_pixels: int) -> Clip:
    durations_ms: list[float] = []

    def frames() -> Iterator[Callable[[], np.ndarray]]:
        pixels = 0
        for frame in PIL.ImageSequence.Iterator(opened):
            check_pixels(frame)
            pixels = _count_pixels(pixels, max_pixels, *frame.size)
            frame.load()
            durations_ms.append(float(frame.info.get("duration", 0) or 0))
            yield functools.partial(to_uint8, frame)

    clip = _subsample(frames(), 1.0)
    seconds = sum(durations_ms) / 1000
    # clip.rate is 1 / stride here, which scales the average rate of all frames.
    return clip._replace(rate=clip.rate * len(durations_ms) / seconds if seconds else 0.0)


def _read_video(data: bytes, name: str) -> Clip:
    try:
        import av
    except ImportError:
        raise UserError("video", f"{name!r} needs the package av", "pip install 'mmjax[video]'") from None
    decoded, end = 0, 0.0

    def frames(stream: Any) -> Iterator[Callable[[], np.ndarray]]:
        nonlocal decoded, end
        pixels, limit = 0, _max_pixels(data)
        for frame in stream.container.decode(stream):
            pixels = _count_pixels(pixels, limit, frame.width, frame.height)
            decoded, end = decoded + 1, max(end, frame.time or 0.0)
            yield functools.partial(_rotate_upright, frame)

    try:
        container: Any
        with av.open(io.BytesIO(data), container_options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.video:
                raise ValueError("the file has no video stream")
            stream: Any = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
            rate = float(stream.average_rate or 0)
            duration = float(stream.duration * stream.time_base) if stream.duration else 0.0
            if not duration and not container.streams.audio and container.duration:
                duration = container.duration / 1_000_000
            start = float((stream.start_time or 0) * stream.time_base)
            clip = _subsample(frames(stream), rate)
    # Each codec raises exceptions of its own, and invalid frame sizes raise others.
    except Exception as error:
        raise ValueError(f"not a video, or a damaged one: {error}") from None
    # Allow 10 %: frames may lack a timestamp or differ in duration.
    seconds = max(end - start, decoded / rate) + 1 / rate if rate else end - start
    if seconds < 0.9 * duration:
        raise ValueError(f"truncated: {decoded:,} frames, {seconds:.1f} of {duration:.1f} seconds")
    return clip


def _rotate_upright(frame: Any) -> np.ndarray:
    """Converts a PyAV frame to uint8 [H, W, 3], rotated by the file's orientation."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def _subsample(frames: Iterable[Callable[[], np.ndarray]], rate: float) -> Clip:
    """Keeps at most `MAX_FRAMES` evenly spaced frames, downscaled to `MAX_SIDE`.

    Skipped frames are never converted, and at most `MAX_FRAMES` are in memory, whatever the length of the clip.
    """
    kept: list[np.ndarray] = []
    stride = 1
    for index, make in enumerate(frames):
        if index % stride:
            continue
        if len(kept) == MAX_FRAMES:
            kept, stride = kept[::2], 2 * stride
            if index % stride:
                continue
        kept.append(_downscale(make()))
    if not kept:
        raise ValueError("the clip has no frames")
    return Clip(kept, rate / stride)


def _downscale(pixels: np.ndarray) -> np.ndarray:
    longest = max(pixels.shape[:2])
    if longest <= MAX_SIDE:
        return pixels
    height, width = (max(1, round(side * MAX_SIDE / longest)) for side in pixels.shape[:2])
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BOX, reducing_gap=3.0))

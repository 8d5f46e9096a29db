"""Video: video files, animations, NPY, and folders of frames."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import PIL.Image

from mmjax.config import AtLeast, Within
from mmjax.modalities.clips import Clip, LazyFrames, as_clip, clip_from_array, clip_from_images, read_clip, read_frame
from mmjax.prepare import pictures
from mmjax.prepare.kinds.base import File, Kind, Unreadable
from mmjax.prepare.kinds.image import ImageKind, Picture, thumbnail

_MEASURED, _SKETCHED, _SHOWN = 8, 4, 6
# Below, nobody calls two frames alike.
_UNLIKE = 0.5
_STRIP = 96
# What a page can play, by the bytes that a file of it has near its beginning. More would make the page heavy.
_PLAYED = {"video/mp4": rb"^.{4}ftyp", "video/webm": rb"^\x1aE\xdf\xa3"}
_MOST_PLAYED = 512 * 1024


class Footage(NamedTuple):
    """A clip, and the file that it came in, if that is one that browsers play."""

    clip: Clip
    file: bytes | None = None


class VideoKind(Kind):
    """A clip; stored as its rate and at most 128 frames, JPEG files of at most 320 pixels on the longer side."""

    takes_folders = True
    fault_names = ("blank", "constant")
    suffixes = (".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi", ".mpg", ".mpeg", ".npy")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When a clip is faulty, and when two are near duplicates.

        Attributes:
          blank: a clip whose grey levels, of 0 to 255, all but one in a thousand lie within this range is blank.
          still: a clip is constant if no grey level, all but one in a thousand, changes by more than this in all of it.
          alike: of four frames each, evenly spread, the likeness of the two that are least alike, as for images.
        """

        blank: Annotated[float, AtLeast(0)] = 8.0
        still: Annotated[float, AtLeast(0)] = 4.0
        similarity: Annotated[float, Within(0, 1)] = 0.87

    def decode(self, value: Any) -> Footage:
        try:
            if isinstance(value, tuple) and all(isinstance(file, File) for file in value):
                return Footage(clip_from_images((file.name, file.data) for file in value))
            if isinstance(value, (File, bytes)):
                data = value.data if isinstance(value, File) else value
                plays = any(re.match(begins, data, re.S) for begins in _PLAYED.values())
                name = value.name if isinstance(value, File) else "a video"
                return Footage(read_clip(data, name), data if plays and len(data) <= _MOST_PLAYED else None)
            if isinstance(value, np.ndarray):
                return Footage(clip_from_array(value))
            return Footage(as_clip(value))
        except ValueError as error:
            raise Unreadable(str(error)) from None

    def measure(self, raw: Footage) -> dict[str, float | int | str]:
        frames, rate = raw.clip
        size = (frames[0].shape[0], frames[0].shape[1])
        some = np.stack([_grey(frames[number], size) for number in _spread(len(frames), _MEASURED)])
        low, high = np.quantile(some, (0.0005, 0.9995))
        measured: dict[str, float | int | str] = {
            "frames": len(frames),
            "height": size[0],
            "width": size[1],
            "channels": max(1 if frame.ndim == 2 else frame.shape[2] for frame in frames),
            "mean": float(some.mean()) / 255,
            "std": float(some.std()) / 255,
            "range": float(high - low),
            "motion": float(np.quantile(np.ptp(some, axis=0), 0.999)),
            # As much as JPEG files of such a quality take, more or less.
            "bytes": len(frames) * size[0] * size[1] // 3,
        }
        return measured | ({"rate": rate, "seconds": len(frames) / rate} if rate else {})

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if measured["range"] <= self.config.blank:
            return {"blank": f"its grey levels lie within {measured['range']:.1f} of 255"}
        if measured["motion"] <= self.config.still:
            return {"constant": f"nothing changes in its {measured['frames']:,} frames"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["frames"] * measured["height"] * measured["width"]

    def signature(self, raw: Footage) -> bytes:
        frames = raw.clip.frames
        return b"".join(thumbnail(frames[number]) for number in _spread(len(frames), _SKETCHED))

    def hashes(self, signature: bytes) -> np.ndarray:
        # Of all frames laid over one another, in which what moves is a trace.
        return pictures.hash_image(_thumbnails(signature).mean(axis=(0, 3)))

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return pictures.candidates(hashes)

    def similarity(self, one: bytes, other: bytes) -> float:
        clips = _thumbnails(one), _thumbnails(other)
        # To lay frames on one another takes long. Most pairs have nothing in common, and a few blocks tell.
        first, second = (frames.reshape(_SKETCHED, 6, 8, 6, 8, 3).mean(axis=(2, 4)) for frames in clips)
        if np.square(first - second).sum() > max(np.square(blocks - blocks.mean()).sum() for blocks in (first, second)):
            return 0.0
        least = 1.0
        for frames in zip(*clips, strict=True):
            least = min(least, pictures.crop_similarity(*frames))
            if least < _UNLIKE:
                break
        return least

    def features(self, raw: Footage) -> np.ndarray:
        """What an image has, of two frames."""
        frames = raw.clip.frames
        chosen = [frames[number] for number in _spread(len(frames), 4)[1:3]]
        return np.concatenate([ImageKind().features(Picture(frame)) for frame in chosen])

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        # Files, of which a reader decodes the few frames that it wants.
        frames = tfds.features.Sequence(tfds.features.Text())
        return tfds.features.FeaturesDict({"frames": frames, "rate": tfds.features.Scalar(dtype=np.float32)})

    def stored(self, raw: Footage, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"frames": [_jpeg(frame) for frame in raw.clip.frames], "rate": raw.clip.rate}

    def placeholder(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"frames": [b""], "rate": 0.0}

    def restore(self, stored: Mapping[str, Any]) -> Clip:
        files = stored["frames"]
        return Clip(LazyFrames(len(files), lambda number: read_frame(files[number])), float(stored["rate"]))

    def show(self, raw: Footage) -> str:
        frames, rate = raw.clip
        height, width = frames[0].shape[:2]
        wide = max(1, round(_STRIP * width / height))
        shown = [
            np.asarray(PIL.Image.fromarray(_rgb(frames[number])).resize((wide, _STRIP)))
            for number in _spread(len(frames), _SHOWN)
        ]
        title = f"{len(frames):,} frames of {width} x {height}" + (f", {rate:.4g} a second" if rate else "")
        strip = base64.b64encode(_jpeg(np.concatenate(shown, axis=1))).decode()
        page = f'<img alt="" title="{title}" style="max-width: 100%" src="data:image/jpeg;base64,{strip}">'
        for kind, begins in _PLAYED.items():
            if raw.file is not None and re.match(begins, raw.file, re.S):
                data = base64.b64encode(raw.file).decode()
                page += f'<video controls muted preload="none" width="220" src="data:{kind};base64,{data}"></video>'
        return page


def _spread(count: int, wanted: int) -> list[int]:
    """Numbers of frames from the first to the last, the same one several times where there are too few."""
    return np.rint(np.linspace(0, count - 1, wanted)).astype(int).tolist()


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]; what is transparent is laid on white."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _grey(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float [H, W] of a frame, at the size of the first one, which the frames of a folder need not have."""
    if pixels.shape[:2] != size:
        pixels = np.asarray(PIL.Image.fromarray(_rgb(pixels)).resize((size[1], size[0])))
    return _rgb(pixels).mean(axis=2)


def _jpeg(pixels: np.ndarray) -> bytes:
    """A grey frame stays grey; colours keep their resolution."""
    flat = pixels if pixels.ndim == 2 else _rgb(pixels)
    buffer = io.BytesIO()
    PIL.Image.fromarray(flat).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _thumbnails(signature: bytes) -> np.ndarray:
    return np.frombuffer(signature, np.uint8).reshape(_SKETCHED, pictures.SIDE, pictures.SIDE, 3).astype(np.float32)

"""Video: video files, animated images, NPY arrays and folders of frames."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import PIL.Image

from mmjax.config import AtLeast, Formerly, Within
from mmjax.modalities.clips import (
    MAX_FRAMES,
    Clip,
    LazyFrames,
    as_clip,
    clip_from_array,
    clip_from_images,
    encode_frame,
    read_clip,
    read_frame,
    to_rgb,
)
from mmjax.prepare import pictures
from mmjax.prepare.kinds.base import File, Kind, Unreadable, data_uri
from mmjax.prepare.kinds.image import ImageKind, Picture, thumbnail

# Number of evenly spaced frames used by `measure`, `signature` and `show`.
_MEASURED, _COMPARED, _SHOWN = 8, 4, 6
# Similarity of two frames below which the comparison stops early: no sensible threshold is lower.
_UNLIKE = 0.5
# Height in pixels of the film strip in the data card.
_STRIP = 96
# Formats that browsers play, by magic bytes, and the maximum size in bytes to embed in the data card.
_PLAYABLE = {"video/mp4": rb"^.{4}ftyp", "video/webm": rb"^\x1aE\xdf\xa3"}
_MAX_PLAYED = 512 * 1024


class Footage(NamedTuple):
    """A decoded clip, and its original file if browsers can play it."""

    clip: Clip
    file: bytes | None = None


class VideoKind(Kind):
    """A clip, stored as its frame rate and up to 128 JPEG frames of up to 320 pixels on the longer side."""

    takes_folders = True
    fault_names = ("blank", "constant")
    suffixes = (".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi", ".mpg", ".mpeg", ".npy")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Thresholds of the video checks.

        Attributes:
          blank: range of grey levels (0 to 255, central 99.9 % of the pixels) up to which a clip is blank.
          still: change of grey level over the clip (99.9th percentile over pixels) up to which it is constant.
          similarity: image similarity at or above which two clips are near duplicates; the minimum over four evenly
            spaced frames.
        """

        blank: Annotated[float, AtLeast(0)] = 8.0
        still: Annotated[float, AtLeast(0)] = 4.0
        similarity: Annotated[float, Within(0, 1), Formerly("alike")] = 0.87

    def decode(self, value: Any) -> Footage:
        try:
            if isinstance(value, tuple) and all(isinstance(file, File) for file in value):
                return Footage(clip_from_images((file.name, file.data) for file in value))
            if isinstance(value, (File, bytes)):
                data = value.data if isinstance(value, File) else value
                playable = any(re.match(magic, data, re.S) for magic in _PLAYABLE.values())
                name = value.name if isinstance(value, File) else "a video"
                return Footage(read_clip(data, name), data if playable and len(data) <= _MAX_PLAYED else None)
            if isinstance(value, np.ndarray):
                return Footage(clip_from_array(value))
            return Footage(as_clip(value))
        except ValueError as error:
            raise Unreadable(str(error)) from None

    def measure(self, raw: Footage) -> dict[str, float | int | str]:
        frames, rate = raw.clip
        size = (frames[0].shape[0], frames[0].shape[1])
        grey = np.stack([_grey(frames[index], size) for index in _evenly_spaced(len(frames), _MEASURED)])
        low, high = np.quantile(grey, (0.0005, 0.9995))
        measured: dict[str, float | int | str] = {
            "frames": len(frames),
            "height": size[0],
            "width": size[1],
            "channels": max(1 if frame.ndim == 2 else frame.shape[2] for frame in frames),
            "mean": float(grey.mean()) / 255,
            "std": float(grey.std()) / 255,
            "range": float(high - low),
            "motion": float(np.quantile(np.ptp(grey, axis=0), 0.999)),
            # Rough size of the JPEG files at the quality of `encode_frame`.
            "bytes": len(frames) * size[0] * size[1] // 3,
        }
        return measured | ({"rate": rate, "seconds": len(frames) / rate} if rate else {})

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        if measured["range"] <= self.config.blank:
            return {"blank": f"grey levels span only {measured['range']:.1f} of 255"}
        if measured["motion"] <= self.config.still:
            return {"constant": f"no motion in {measured['frames']:,} frames"}
        return {}

    def quality(self, measured: Mapping[str, Any]) -> float:
        return measured["frames"] * measured["height"] * measured["width"]

    def signature(self, raw: Footage) -> bytes:
        frames = raw.clip.frames
        return b"".join(thumbnail(frames[index]) for index in _evenly_spaced(len(frames), _COMPARED))

    def hashes(self, signature: bytes) -> np.ndarray:
        # Hash the mean frame, which reflects motion.
        return pictures.hash_image(_thumbnails(signature).mean(axis=(0, 3)))

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        return pictures.candidates(hashes)

    def similarity(self, a: bytes, b: bytes) -> float:
        clips = _thumbnails(a), _thumbnails(b)
        # Reject most pairs by their block means: aligning frames is slow.
        first, second = (frames.reshape(_COMPARED, 6, 8, 6, 8, 3).mean(axis=(2, 4)) for frames in clips)
        if np.square(first - second).sum() > max(np.square(blocks - blocks.mean()).sum() for blocks in (first, second)):
            return 0.0
        lowest = 1.0
        for frames in zip(*clips, strict=True):
            lowest = min(lowest, pictures.crop_similarity(*frames))
            if lowest < _UNLIKE:
                break
        return lowest

    def features(self, raw: Footage) -> np.ndarray:
        """Image features of the two middle frames of four evenly spaced ones."""
        frames = raw.clip.frames
        chosen = [frames[index] for index in _evenly_spaced(len(frames), 4)[1:3]]
        return np.concatenate([ImageKind().features(Picture(frame)) for frame in chosen])

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        # Store encoded frames, so that readers decode only the frames they need.
        frames = tfds.features.Sequence(tfds.features.Text())
        rate = tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes")
        return tfds.features.FeaturesDict({"frames": frames, "rate": rate})

    def stored(self, raw: Footage, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"frames": [encode_frame(frame) for frame in raw.clip.frames], "rate": np.float64(raw.clip.rate)}

    def placeholder(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        return {"frames": [b""], "rate": np.float64(0.0)}

    def restore(self, stored: Mapping[str, Any]) -> Clip:
        files = stored["frames"]
        return Clip(LazyFrames(len(files), lambda index: read_frame(files[index])), float(stored["rate"]))

    def notes(self, summary: Mapping[str, Any]) -> list[str]:
        if "rate" not in summary:
            return ["frame rates are unknown; leave the option `rate` of the modality unset"]
        low, high = (summary["rate"][name] for name in ("smallest", "largest"))
        note = f"{low:.4g} to {high:.4g} frames per second are stored; `rate` above {low:.4g} repeats frames"
        return [f"{note} (clips keep at most {MAX_FRAMES})"]

    def show(self, raw: Footage) -> str:
        frames, rate = raw.clip
        height, width = frames[0].shape[:2]
        scaled_width = max(1, round(_STRIP * width / height))
        shown = [
            np.asarray(PIL.Image.fromarray(to_rgb(frames[index])).resize((scaled_width, _STRIP)))
            for index in _evenly_spaced(len(frames), _SHOWN)
        ]
        title = f"{len(frames):,} frames of {width} x {height}" + (f", {rate:.4g} per second" if rate else "")
        strip = data_uri("image/jpeg", encode_frame(np.concatenate(shown, axis=1)))
        html = f'<img alt="" title="{title}" style="max-width: 100%" src="{strip}">'
        for mime, magic in _PLAYABLE.items():
            if raw.file is not None and re.match(magic, raw.file, re.S):
                html += f'<video controls muted preload="none" width="220" src="{data_uri(mime, raw.file)}"></video>'
        return html


def _evenly_spaced(count: int, samples: int) -> list[int]:
    """Evenly spaced frame indices from the first to the last; repeats indices if `samples` exceeds `count`."""
    return np.rint(np.linspace(0, count - 1, samples)).astype(int).tolist()


def _grey(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Converts a frame to grey float [H, W], resized to `size`: frames of a folder may differ in size."""
    if pixels.shape[:2] != size:
        pixels = np.asarray(PIL.Image.fromarray(to_rgb(pixels)).resize((size[1], size[0])))
    return to_rgb(pixels).mean(axis=2)


def _thumbnails(signature: bytes) -> np.ndarray:
    return np.frombuffer(signature, np.uint8).reshape(_COMPARED, pictures.SIDE, pictures.SIDE, 3).astype(np.float32)

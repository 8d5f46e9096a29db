"""Video modality: samples a fixed number of frames from a clip and processes each like an image, with a mask."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.files import user_path
from mmjax.modalities.clips import Clip, as_clip, as_stored, clip_from_images, read_clip
from mmjax.modalities.image import Image, PreprocessConfig
from mmjax.modalities.raw_files import read_bytes
from mmjax.tokens import InputSpec

_REMEDY = "give the path of a video, a GIF or WebP, an NPY file uint8 [T, H, W, 3], or a folder of images"


class Video:
    """Converts clips of any length, rate and size to arrays of a fixed shape. Raw data is a `Clip`, (frames, rate)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PreprocessConfig):
        """Options of `Video`.

        Attributes:
          frames: number of frames; shorter clips are padded and masked.
          rate: frames sampled per second, from the start of the clip. None samples evenly over the whole clip.
            Above the clip's own rate, frames repeat; `mmjax prepare` keeps at most 128 frames of a clip, and reports
            the lowest rate that remains.
        """

        frames: Count = 8
        rate: Annotated[float, AtLeast(0.001)] | None = None

    def __init__(self, config: Config):
        self.config = config
        options = {field.name: getattr(config, field.name) for field in dataclasses.fields(PreprocessConfig)}
        self._image = Image(Image.Config(**options))

    @property
    def spec(self) -> InputSpec:
        """[frames, height, width, channels] float32, with a mask per frame."""
        return InputSpec((self.config.frames, *self._image.spec.shape), "float32", mask_rank=1)

    def process(self, raw: Clip) -> tuple[np.ndarray, np.ndarray]:
        """Converts a clip to (values [frames, height, width, channels] float32, mask [frames] bool).

        Raises:
          ValueError: if `raw` is not a valid clip, or `rate` is set and the clip's rate is unknown.
        """
        frames, rate = as_clip(raw)
        indices = self._frame_indices(len(frames), rate)
        values = np.zeros(self.spec.shape, np.float32)
        for slot, index in enumerate(indices):
            values[slot] = self._image.process(frames[int(index)])[0]
        return values, np.arange(self.config.frames) < len(indices)

    def read(self, argument: str, where: str) -> Clip:
        """Reads a video file, or a folder of images, from the path `argument`, with the frames of prepared data.

        Raises:
          UserError: if the file or a frame is missing, unreadable, damaged or truncated.
        """
        try:
            folder = user_path(argument)
            if os.path.isdir(folder):
                paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
                files = ((path.name, read_bytes(str(path), where, _REMEDY)) for path in paths)
                return as_stored(clip_from_images(files))
            return as_stored(read_clip(read_bytes(argument, where, _REMEDY), argument))
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", _REMEDY) from None

    def warnings(self, raw: Clip) -> list[str]:
        """Reports repeated frames: the rate of the clip is below `rate`."""
        frames, rate = as_clip(raw)
        wanted = self.config.rate
        if wanted is None or not rate or len(frames) == 1 or wanted <= rate * (1 + 1e-6):
            return []
        return [f"frames repeat, because the clip has {rate:.4g} frames per second and the run samples {wanted:.4g}"]

    def _frame_indices(self, count: int, rate: float) -> np.ndarray:
        """Selects int64 [n] frame indices of a clip of `count` frames, n <= config.frames."""
        slots = np.arange(self.config.frames)
        if self.config.rate is None:
            if count <= len(slots):
                return np.arange(count)
            # Centres of `frames` equal segments.
            return (2 * slots + 1) * count // (2 * len(slots))
        if not rate:
            raise ValueError("the clip has no frame rate; leave `rate` unset")
        # Each frame is shown until the next one.
        indices = np.floor(slots * rate / self.config.rate + 1e-6).astype(np.int64)
        return indices[indices < count]

"""Video: of a clip of any length so many frames, each as the image modality makes it, with a mask of what is real."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Count
from mmjax.errors import UserError
from mmjax.modalities.clips import Clip, as_clip, clip_of_pictures, read_clip
from mmjax.modalities.image import Image, PictureConfig
from mmjax.modalities.raw_files import read_bytes
from mmjax.tokens import InputSpec

_REMEDY = "give the path of a video, a GIF or WebP, an NPY file uint8 [T, H, W, 3], or a folder of pictures"


class Video:
    """Makes clips of any length, rate and size into arrays of one shape. Raw data is (frames, rate); see `Clip`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PictureConfig):
        """How a clip becomes an array.

        Attributes:
          frames: how many; of a clip with fewer all are taken, and the rest is masked.
          rate: None takes frames that are evenly spread over the whole clip; a number takes so many a second, from the
            beginning on.
        """

        frames: Count = 8
        rate: Annotated[float, AtLeast(0.001)] | None = None

    def __init__(self, config: Config):
        self.config = config
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(PictureConfig)}
        self._image = Image(Image.Config(**fields))

    @property
    def spec(self) -> InputSpec:
        """[frames, height, width, channels] float32, with a flag for each frame."""
        return InputSpec((self.config.frames, *self._image.spec.shape), "float32", mask_rank=1)

    def process(self, raw: Clip) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [frames, height, width, channels] float32, mask [frames] bool).

        Raises:
          ValueError: if `raw` is no clip, or its rate is needed and not known.
        """
        frames, rate = as_clip(raw)
        chosen = self._chosen(len(frames), rate)
        values = np.zeros(self.spec.shape, np.float32)
        for place, number in enumerate(chosen):
            values[place] = self._image.process(frames[int(number)])[0]
        return values, np.arange(self.config.frames) < len(chosen)

    def read(self, argument: str, where: str) -> Clip:
        """Reads the file or the folder of pictures at the path `argument`. Raises UserError."""
        try:
            folder = pathlib.Path(argument)
            if folder.is_dir():
                paths = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
                return clip_of_pictures((path.name, read_bytes(str(path), where, _REMEDY)) for path in paths)
            return read_clip(read_bytes(argument, where, _REMEDY), argument)
        except ValueError as error:
            raise UserError(where, f"{argument!r}: {error}", _REMEDY) from None

    def files(self) -> list[pathlib.Path]:
        """None."""
        return []

    def _chosen(self, count: int, rate: float) -> np.ndarray:
        """The numbers of the frames that are taken of `count`."""
        wanted = np.arange(self.config.frames)
        if self.config.rate is None:
            if count <= len(wanted):
                return np.arange(count)
            # From the middle of as many equal parts.
            return (2 * wanted + 1) * count // (2 * len(wanted))
        if not rate:
            raise ValueError("the clip does not say how fast it is; leave `rate` out")
        # A frame is seen until the next one comes.
        numbers = np.floor(wanted * rate / self.config.rate + 1e-6).astype(np.int64)
        return numbers[numbers < count]

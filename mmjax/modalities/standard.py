"""Numbers of several channels on one scale: less their mean in training, divided by their deviation there."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Formerly


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardConfig:
    """How numbers are standardised. A prepared dataset says mean and std.

    Attributes:
      mean, std: of each channel; 0 and 1 by default.
      largest: standardised values beyond it are cut off, as one absurd value must not rule a sum.
    """

    mean: Annotated[tuple[float, ...], Formerly("means")] = ()
    std: Annotated[tuple[float, ...], Formerly("deviations")] = ()
    largest: Annotated[float, AtLeast(0.1)] = 10.0

    def check(self, channels: int) -> None:
        """Raises a ValueError unless mean and std are of so many channels."""
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (0, channels):
                raise ValueError(f"{name} has {count} numbers; give {channels}, one for each channel")
        if min(self.std, default=1.0) <= 0:
            raise ValueError("a deviation is not above 0; give one that is")

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Of [n, channels]; what is missing, NaN or infinite, becomes 0, which is the mean."""
        mean, deviation = self.mean or 0.0, self.std or 1.0
        scaled = (np.where(np.isfinite(values), values, mean) - np.asarray(mean)) / np.asarray(deviation)
        return np.clip(scaled, -self.largest, self.largest)

"""Per-channel standardisation with the mean and standard deviation of the training split."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mmjax.config import AtLeast, Formerly


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandardiseConfig:
    """Options of standardisation. A prepared dataset provides mean and std.

    Attributes:
      mean: mean of each channel, 0 by default.
      std: standard deviation of each channel, 1 by default.
      largest: clips standardised values to [-largest, largest], which bounds the effect of outliers.
    """

    mean: Annotated[tuple[float, ...], Formerly("means")] = ()
    std: Annotated[tuple[float, ...], Formerly("deviations")] = ()
    largest: Annotated[float, AtLeast(0.1)] = 10.0

    def check(self, channels: int) -> None:
        """Checks that mean and std are empty or have one entry per channel, and that std is positive.

        Raises:
          ValueError: if the check fails.
        """
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (0, channels):
                raise ValueError(f"{name} has {count} numbers; give {channels}, one for each channel")
        if min(self.std, default=1.0) <= 0:
            raise ValueError("std has a value that is not positive; give values above 0")

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Standardises and clips [n, channels]. Missing values (NaN or infinite) become 0, the mean."""
        mean, std = self.mean or 0.0, self.std or 1.0
        scaled = (np.where(np.isfinite(values), values, mean) - np.asarray(mean)) / np.asarray(std)
        return np.clip(scaled, -self.largest, self.largest)

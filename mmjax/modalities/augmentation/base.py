"""Base class of the augmentations."""

from __future__ import annotations

from typing import Any

import numpy as np


class Augmentation:
    """Random transformation of raw data.

    Args:
      config: instance of the nested `Config`.
    """

    def __init__(self, config: Any):
        self.config = config

    def __call__(self, raw: Any, rng: np.random.Generator) -> Any:
        """Returns randomly transformed raw data of the same form."""
        raise NotImplementedError

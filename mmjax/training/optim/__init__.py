"""Optimiser, schedules, and the Optax transforms applied to gradients before the optimiser, by `kind`.

A transform is a class with a nested dataclass `Config` and a method `__call__(config) -> optax.GradientTransformation`.
To add one, write it in its own file and register it in `TRANSFORMS`.
"""

from mmjax.training.optim.adaptive_clip import AdaptiveClip
from mmjax.training.optim.centralize import Centralize

TRANSFORMS = {
    "adaptive_clip": AdaptiveClip,
    "centralize": Centralize,
}

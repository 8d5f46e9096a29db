"""Optimiser, schedules, and the Optax transforms that a config can put before the optimiser, by `kind`.

A transform is a class with a nested dataclass `Config` whose instances, called with it, give an
`optax.GradientTransformation`; in its own file, with a line in `TRANSFORMS`.
"""

from mmjax.training.optim.adaptive_clip import AdaptiveClip
from mmjax.training.optim.centralize import Centralize

TRANSFORMS = {
    "adaptive_clip": AdaptiveClip,
    "centralize": Centralize,
}

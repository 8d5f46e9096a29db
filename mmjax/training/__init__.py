"""Training: the step, the loop, and the tables of what can be plugged into them.

Four plug points, each a table: loss transforms (`LOSS_TRANSFORMS`), gradient estimators (`ESTIMATORS`), Optax
transforms (`TRANSFORMS`) and loop hooks (`HOOKS`). A technique is one file and one line in one of them.
"""

from mmjax.training.estimators import ESTIMATORS
from mmjax.training.hooks import HOOKS
from mmjax.training.loss_transforms import LOSS_TRANSFORMS
from mmjax.training.optim import TRANSFORMS

__all__ = ["ESTIMATORS", "HOOKS", "LOSS_TRANSFORMS", "TRANSFORMS"]

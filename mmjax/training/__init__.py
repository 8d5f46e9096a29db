"""Training: the step, the loop, and the tables of what can be plugged into them.

Four plug points, each a table: loss transforms (`LOSS_TRANSFORMS`), gradient estimators (`ESTIMATORS`), Optax
transforms (`TRANSFORMS`) and loop hooks (`HOOKS`). A technique is one file and one line in one of them.
"""

from mmjax.training.adversarial import Adversarial
from mmjax.training.early_stopping import EarlyStopping
from mmjax.training.estimators import ESTIMATORS
from mmjax.training.mixing import CutMix, Mixup
from mmjax.training.transforms import TRANSFORMS

LOSS_TRANSFORMS = {
    "adversarial": Adversarial,
    "cutmix": CutMix,
    "mixup": Mixup,
}
HOOKS = {
    "early_stopping": EarlyStopping,
}

__all__ = ["ESTIMATORS", "HOOKS", "LOSS_TRANSFORMS", "TRANSFORMS"]

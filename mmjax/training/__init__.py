"""Train step, training loop and the registries of training techniques.

Techniques plug in at four points, each with a registry: loss transforms (`LOSS_TRANSFORMS`), gradient estimators
(`ESTIMATORS`), Optax transforms (`TRANSFORMS`) and loop hooks (`HOOKS`). A technique is one file and one entry.
"""

from mmjax.training.estimators import ESTIMATORS
from mmjax.training.hooks import HOOKS
from mmjax.training.loss_transforms import LOSS_TRANSFORMS
from mmjax.training.optim import TRANSFORMS

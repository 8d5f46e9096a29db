"""Loss transforms: objective to objective."""

from mmjax.training.loss_transforms.adversarial import Adversarial
from mmjax.training.loss_transforms.mixing import CutMix, Mixup

LOSS_TRANSFORMS = {
    "adversarial": Adversarial,
    "cutmix": CutMix,
    "mixup": Mixup,
}

"""Loss transforms, which wrap an objective in another objective, by `kind`."""

from mmjax.training.loss_transforms.adversarial import Adversarial
from mmjax.training.loss_transforms.mixing import CutMix, Mixup

LOSS_TRANSFORMS = {
    "adversarial": Adversarial,
    "cutmix": CutMix,
    "mixup": Mixup,
}

"""Loop hooks: callbacks of the training loop, by `kind`."""

from mmjax.training.hooks.early_stopping import EarlyStopping

HOOKS = {
    "early_stopping": EarlyStopping,
}

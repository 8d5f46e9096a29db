"""Loop hooks: what runs beside the training step."""

from mmjax.training.hooks.early_stopping import EarlyStopping

HOOKS = {
    "early_stopping": EarlyStopping,
}

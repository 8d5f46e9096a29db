"""A recipe whose run takes about a second after start-up, with all that a state keeps: EMA, dropout, best checkpoint.

Rows are logged every 3 steps and checkpoints saved every 4, so that a checkpoint lies within a row.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 3
    config.data = {
        "name": "synthetic",
        "letters": 8,
        "examples": 64,
        "inputs": {"text": {"length": 8}},
        "modality_dropout": {"text": 0.2},
        "workers": 0,
    }
    trunk = {"width": 8, "depth": 1, "heads": 1, "dropout": 0.1}
    config.model = {"encoders": {"text": {"kind": "text_transformer", **trunk}}}
    config.tasks = {"label": {"kind": "classification", "reads": "encoders.text"}}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05}
    config.schedule = {"kind": "cosine", "peak": 1e-2, "warmup": 5}
    config.train = {"steps": 16, "batch_size": 16, "ema": 0.9}
    config.mesh = {"data": -1, "fsdp": 1, "heartbeat_timeout": 20.0}
    config.checkpoint = {"every": 4, "keep": 2, "best": "label/loss", "mode": "min"}
    config.evaluate = {"every": 4, "splits": ["validation"], "subsets": False, "batch_size": 32}
    config.log = {"every": 3}
    return config

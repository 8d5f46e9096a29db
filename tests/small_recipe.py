"""A recipe whose run takes seconds: two encoders of the digits, with everything in it that a state has to keep.

Rows are logged every 5 steps and checkpoints made every 8, so that a checkpoint falls into the middle of a row.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    trunk = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.1}
    config = ConfigDict()
    config.seed = 3
    config.data = {
        "name": "digits",
        "task": "matched",
        "inputs": {"image": {"size": [8, 8], "channels": 1}, "text": {"length": 16}},
        "modality_dropout": {"image": 0.3, "text": 0.3},
        "missing_fraction": {"digit": 0.1},
    }
    config.model = {
        "encoders": {"image": {"kind": "vit", "patch": 4, **trunk}, "text": {"kind": "text_transformer", **trunk}},
        "fusion": {"kind": "concatenation", "width": 16, "hidden": 32, "dropout": 0.1},
    }
    config.tasks = {"digit": {"kind": "classification"}}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05}
    config.schedule = {"kind": "cosine", "peak": 1e-2, "warmup": 5}
    config.train = {"steps": 28, "batch_size": 16, "accumulate": 2, "ema": 0.9}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "heartbeat_timeout": 60.0}
    config.checkpoint = {"every": 8}
    config.evaluate = {"every": 10, "splits": ["validation"], "subsets": False, "batch_size": 128}
    config.log = {"every": 5}
    config.watchdog = {"input": 1800.0, "step": 3600.0, "evaluation": 3600.0, "save": 3600.0}
    return config

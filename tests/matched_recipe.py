"""Recipe that learns to classify a digit from an image, a recording or a sentence, in half a minute on two cores."""

from ml_collections import ConfigDict


def get_config(tokenizer: str = "bytes") -> ConfigDict:
    trunk = {"width": 48, "depth": 1, "heads": 4}
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "digits",
        "task": "matched",
        "inputs": {
            "image": {"size": [8, 8], "channels": 1, "background": "dark", "crop": "content", "fit": "pad"},
            "audio": {"seconds": 0.8, "trim": 25.0},
            "text": {"length": 16, "tokenizer": tokenizer},
        },
        "modality_dropout": {"image": 0.4, "audio": 0.4, "text": 0.4},
        "workers": 0,
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "patch": 4, "stride": 2, **trunk},
            "audio": {"kind": "spectrogram_transformer", "reduction": 4, "bins": 40, **trunk},
            "text": {"kind": "text_transformer", **trunk},
        },
        "fusion": {"kind": "concatenation", "width": 48},
    }
    config.tasks = {
        "digit": {"kind": "classification", "reads": "fused"},
        "seen": {"kind": "classification", "target": "digit", "reads": "encoders.image", "weight": 0.5},
        "heard": {"kind": "classification", "target": "digit", "reads": "encoders.audio", "weight": 0.5},
    }
    config.optimizer = {"name": "adamw", "weight_decay": 0.01, "b2": 0.999}
    config.schedule = {"kind": "cosine", "peak": 4e-3, "warmup": 20}
    config.train = {"steps": 300, "batch_size": 32, "accumulate": 1, "hooks": []}
    config.checkpoint = {"every": 1000, "keep": 1, "best": ""}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.precision = {"compute": "float32"}
    config.evaluate = {"every": 0, "splits": ["test"], "subsets": True, "batch_size": 200, "checkpoint": "latest"}
    config.log = {"every": 50}
    return config

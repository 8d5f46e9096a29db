"""The first recipe: arithmetic on a digit image, a spoken digit and a question. Trains in minutes on four CPU cores.

`configs/digits.py:matched` instead aligns image, speech and text of the same digit, and classifies it.
"""

from ml_collections import ConfigDict


def get_config(task: str = "arithmetic") -> ConfigDict:
    """`task` is "arithmetic" or "matched"."""
    trunk = {"width": 128, "depth": 2, "heads": 4, "dropout": 0.0, "drop_path": 0.0}
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "digits",
        "task": task,
        # Crop and trim whatever surrounds the digit in a user's image or recording, to match the training data.
        "inputs": {
            "image": {"size": [8, 8], "channels": 1, "background": "dark", "crop": "content", "fit": "pad"},
            "audio": {"seconds": 1.0, "trim": 25.0},
            "text": {"length": 32},
        },
        # Without augmentation the model memorises the 1,200 images and 42 voices.
        "augment": {
            "image": [{"kind": "affine", "rotate": 15.0, "shear": 0.2, "scale": 0.1, "shift": 0.08}],
            "audio": [{"kind": "speed", "change": 0.08}],
        },
        # Modality dropout teaches the model to handle missing inputs.
        "modality_dropout": {"image": 0.15, "audio": 0.15, "text": 0.25},
        "workers": 0,
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "patch": 4, "stride": 2, **trunk},
            "audio": {"kind": "spectrogram_transformer", "reduction": 6, "bins": 64, **trunk},
            # A small encoder suffices for two dozen sentences.
            "text": {"kind": "text_transformer", **trunk, "width": 64, "depth": 1, "heads": 2},
        },
        # Learned queries attend to the three encoders. With `pairs`, modalities first attend to each other, at twice
        # the cost: {"image": ["audio", "text"]}.
        "fusion": {
            "kind": "cross_attention",
            "width": 128,
            "depth": 1,
            "heads": 4,
            "hidden": 1024,
            "queries": 4,
            "pairs": {},
        },
    }
    if task == "arithmetic":
        config.tasks = {
            "answer": {"kind": "classification", "reads": "fused", "weight": 1.0},
            # Unimodal auxiliary losses: without them the fusion starts to learn much later.
            "image_digit": {"kind": "classification", "reads": "encoders.image", "weight": 0.3},
            "audio_digit": {"kind": "classification", "reads": "encoders.audio", "weight": 0.3},
            "operation": {"kind": "classification", "reads": "encoders.text", "weight": 0.3},
        }
    else:
        config.tasks = {
            "digit": {"kind": "classification", "reads": "fused", "weight": 1.0},
            "image_audio": {
                "kind": "contrastive",
                "pair": ["encoders.image", "encoders.audio"],
                "positives": "digit",
                "weight": 0.3,
            },
            "image_text": {
                "kind": "contrastive",
                "pair": ["encoders.image", "encoders.text"],
                "positives": "digit",
                "weight": 0.3,
            },
        }
    config.optimizer = {"name": "adamw", "weight_decay": 0.05, "b2": 0.98, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 2e-3, "warmup": 100}
    config.train = {"steps": 1400 if task == "arithmetic" else 600, "batch_size": 64, "accumulate": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.precision = {"compute": "float32"}
    config.checkpoint = {"every": 500, "keep": 2}
    config.evaluate = {"every": 500, "splits": ["test", "accents"], "batch_size": 256}
    config.log = {"every": 50}
    return config

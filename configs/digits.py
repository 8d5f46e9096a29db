"""An image shows a digit, a voice says another, a sentence asks: the recipe to start from, minutes on four CPU cores.

`configs/digits.py:matched` instead aligns image, speech and a sentence about the same digit, and names the digit.
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
        # What a photograph or a recording has around the digit is cut off, so that it looks and sounds like these.
        "inputs": {
            "image": {"size": [8, 8], "channels": 1, "background": "dark", "crop": "content", "fit": "pad"},
            "audio": {"seconds": 1.0, "trim": 25.0},
            "text": {"length": 32},
        },
        # 1,200 pictures and 42 voices are few: without these changes the model learns them by heart.
        "augment": {
            "image": [{"kind": "affine", "rotate": 15.0, "shear": 0.2, "scale": 0.1, "shift": 0.08}],
            "audio": [{"kind": "speed", "change": 0.08}],
        },
        # Each input is hidden from some training examples, so that the model also learns to do without it.
        "modality_dropout": {"image": 0.15, "audio": 0.15, "text": 0.25},
        "workers": 0,
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "patch": 4, "stride": 2, **trunk},
            "audio": {"kind": "spectrogram_transformer", "reduction": 6, "bins": 64, **trunk},
            # Two dozen sentences need little.
            "text": {"kind": "text_transformer", **trunk, "width": 64, "depth": 1, "heads": 2},
        },
        # Learned queries read the three encoders. `pairs` may let these read each other first, at twice the cost:
        # {"image": ["audio", "text"]}.
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
            # Each encoder also answers for itself: without these losses the fusion has nothing to read for a long time.
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

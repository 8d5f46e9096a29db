"""SigLIP (Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023): what its sizes have in common.

    mmjax plan --config=configs/siglip_l16.py --topology=v5e:16x16

The recipes are `configs/siglip_b16.py`, `configs/siglip_l16.py` and `configs/siglip_so400m.py`. Their data is random,
so that they can be planned and measured anywhere: put your own dataset of pictures with captions into `data`, and a
tokenizer of at most 31,998 tokens.
"""

from ml_collections import ConfigDict


def recipe(variant: str, pixels: int, heads: int) -> ConfigDict:
    """`variant` is that of both towers, with its patch; `heads` are those of the attention pooling."""
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "synthetic",
        "image": [pixels, pixels, 3],
        "letters": 48,
        "inputs": {
            "image": {"size": [pixels, pixels], "channels": 3},
            "text": {"length": 64, "tokenizer": "bytes", "vocabulary": 32_000, "lowercase": True},
        },
        "workers": -1,
    }
    # Unrolled, a step takes a seventh less time than with loops over the layers, and compiles in two minutes, not one.
    layers = {"rematerialise": "dots", "scan": False}
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "variant": variant, **layers},
            "text": {"kind": "text_transformer", "variant": variant.partition("/")[0], **layers},
        },
    }
    config.tasks = {
        "image_text": {
            "kind": "contrastive",
            "pair": ["encoders.image", "encoders.text"],
            "loss": "sigmoid",
            "width": WIDTHS[variant.partition("/")[0]],
            "pooling": "attention",
            "heads": heads,
            # Recall within the batch would send all captions around the pod once more.
            "recall_at": [],
        }
    }
    config.optimizer = {"name": "adamw", "b2": 0.95, "weight_decay": 1e-4, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 10_000}
    # 32 examples for each chip of 256.
    config.train = {"steps": 1_000_000, "batch_size": 8192, "accumulate": 1}
    # Parameters and moments are split over one ring of a 16x16 pod. On 8 chips: --config.mesh.fsdp=8.
    config.mesh = {"data": -1, "fsdp": 16}
    config.precision = {"compute": "bfloat16"}
    config.checkpoint = {"every": 5000, "keep": 2}
    config.evaluate = {"every": 0, "splits": []}
    config.log = {"every": 100}
    return config


WIDTHS = {"B": 768, "L": 1024, "So400m": 1152}
"""Of the space in which pictures and captions meet: that of the towers."""

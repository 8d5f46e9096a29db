"""SigLIP (Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023): shared by all sizes.

    mmjax plan --config=configs/siglip_l16.py --topology=v5e:16x16

The recipes are `configs/siglip_b16.py`, `configs/siglip_l16.py` and `configs/siglip_so400m.py`. Their data is random,
so they can be planned and measured anywhere. To train, set `data` to your dataset of images with captions, and use a
tokenizer with at most 31,998 tokens.
"""

from ml_collections import ConfigDict


def recipe(variant: str, pixels: int, heads: int) -> ConfigDict:
    """`variant` sets the size of both towers and the patch size; `heads` is for the attention pooling."""
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
    # Unrolled layers take a seventh less time than scanned ones, and compile in two minutes instead of one.
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
            # Recall within the batch would need another ring over all captions.
            "recall_at": [],
        }
    }
    config.optimizer = {"name": "adamw", "b2": 0.95, "weight_decay": 1e-4, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 10_000}
    # 32 examples per chip on 256 chips.
    config.train = {"steps": 1_000_000, "batch_size": 8192, "accumulate": 1}
    # Shard parameters and moments over one ring of a 16x16 pod. On 8 chips: --config.mesh.fsdp=8.
    config.mesh = {"data": -1, "fsdp": 16}
    config.precision = {"compute": "bfloat16"}
    config.checkpoint = {"every": 5000, "keep": 2}
    config.evaluate = {"every": 0, "splits": []}
    config.log = {"every": 100}
    return config


WIDTHS = {"B": 768, "L": 1024, "So400m": 1152}
"""Width of the joint embedding: that of the towers."""

"""CLIP with ViT-B/32 (Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021).

    mmjax train --config=configs/clip_b32.py --workdir=runs/clip --config.train.batch_size=32 --config.train.steps=20

The data is random, so the step can be measured and planned anywhere (`benchmarks/clip.py`). To train, set `data` to
your dataset of images with captions, and the tokenizer to CLIP's, a `.json` file of Hugging Face `tokenizers`.

Differences from CLIP: sin-cos instead of learned positions, bidirectional instead of causal text attention, no bias on
keys but one on patches, no LayerNorm before the first image block, and GELU instead of QuickGELU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "synthetic",
        "image": [224, 224, 3],
        # 77 tokens with the end token.
        "letters": 76,
        "inputs": {
            "image": {
                "size": [224, 224],
                "channels": 3,
                "fit": "crop",
                "mean": [0.481, 0.458, 0.408],
                "std": [0.269, 0.261, 0.276],
            },
            "text": {"length": 77, "tokenizer": "bytes", "vocabulary": 49_408, "lowercase": True},
        },
        "workers": -1,
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "variant": "B/32", "class_token": True},
            "text": {"kind": "text_transformer", "variant": "M"},
        },
    }
    config.tasks = {
        "image_text": {
            "kind": "contrastive",
            "pair": ["encoders.image", "encoders.text"],
            "loss": "softmax",
            "width": 512,
            "pooling": ["first", "last"],
        }
    }
    config.optimizer = {"name": "adamw", "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 5e-4, "warmup": 2000}
    # 32 epochs over 400 million pairs.
    config.train = {"steps": 390_000, "batch_size": 32_768, "accumulate": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.precision = {"compute": "bfloat16"}
    config.checkpoint = {"every": 5000, "keep": 2}
    config.evaluate = {"every": 0, "splits": []}
    config.log = {"every": 100}
    return config

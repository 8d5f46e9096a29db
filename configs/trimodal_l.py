"""Image, audio and text encoders of size L, cross-attention between all of them, and three tasks.

    mmjax plan --config=configs/trimodal_l.py --topology=v5e:16x16

A label from all three, and pictures aligned with captions and with sounds. The data is random, so that the recipe can
be planned and measured anywhere: put your own dataset in its place.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    trunk = {"variant": "L", "rematerialise": "dots"}
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "synthetic",
        "image": [224, 224, 3],
        "letters": 48,
        "recording": 10.0,
        "classes": 1000,
        "inputs": {
            "image": {"size": [224, 224], "channels": 3},
            "audio": {"sample_rate": 16_000, "seconds": 10.0},
            "text": {"length": 64, "tokenizer": "bytes", "vocabulary": 32_000, "lowercase": True},
        },
        # Modality dropout teaches the model to handle missing inputs.
        "modality_dropout": {"image": 0.1, "audio": 0.1, "text": 0.1},
        "workers": -1,
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", **trunk, "variant": "L/16"},
            # 10 seconds give 250 tokens.
            "audio": {"kind": "spectrogram_transformer", **trunk, "reduction": 4},
            "text": {"kind": "text_transformer", **trunk, "depth": 12},
        },
        "fusion": {
            "kind": "cross_attention",
            "width": 1024,
            "depth": 4,
            "heads": 16,
            "queries": 16,
            "pairs": {"image": ["audio", "text"], "audio": ["image", "text"], "text": ["image", "audio"]},
        },
    }
    config.tasks = {
        "label": {"kind": "classification", "reads": "fused", "weight": 1.0},
        "image_text": {
            "kind": "contrastive",
            "pair": ["encoders.image", "encoders.text"],
            "loss": "sigmoid",
            "width": 1024,
            "pooling": "attention",
            "heads": 16,
            "weight": 0.5,
        },
        "image_audio": {
            "kind": "contrastive",
            "pair": ["encoders.image", "encoders.audio"],
            "loss": "sigmoid",
            "width": 1024,
            "pooling": "attention",
            "heads": 16,
            "weight": 0.5,
        },
    }
    config.optimizer = {"name": "adamw", "b2": 0.95, "weight_decay": 1e-4, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 5e-4, "warmup": 10_000}
    # 32 examples per chip on 256 chips.
    config.train = {"steps": 500_000, "batch_size": 8192, "accumulate": 1}
    # Shard parameters over one ring of a 16x16 pod. On 8 chips: --config.mesh.fsdp=8.
    config.mesh = {"data": -1, "fsdp": 16}
    config.precision = {"compute": "bfloat16"}
    config.checkpoint = {"every": 5000, "keep": 2}
    config.evaluate = {"every": 0, "splits": []}
    config.log = {"every": 100}
    return config

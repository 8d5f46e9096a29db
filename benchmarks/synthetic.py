"""Recipe on synthetic data for measuring the host overhead of a step."""

from __future__ import annotations

from ml_collections import ConfigDict


def transformer_recipe(depth: int) -> ConfigDict:
    """Returns a recipe with a Transformer so small that host overhead dominates the step time."""
    config = ConfigDict()
    config.data = {"name": "synthetic", "letters": 7, "inputs": {"text": {"length": 8}}}
    trunk = {"width": 8, "depth": depth, "heads": 1, "hidden": 8}
    config.model = {
        "encoders": {"text": {"kind": "text_transformer", **trunk}},
        "fusion": {"kind": "concatenation", "width": 8, "hidden": 8},
    }
    config.tasks = {"label": {"kind": "classification"}}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 10}
    config.train = {"steps": 1000, "batch_size": 8}
    config.mesh = {"data": -1}
    config.evaluate = {"every": 0, "splits": []}
    return config

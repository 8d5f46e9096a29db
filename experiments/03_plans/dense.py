"""Text Transformers with the sizes of dense language models whose training speed is published.

    mmjax plan --config=experiments/03_plans/dense.py:32b --topology=v5e:16x16 --batch_per_chip=4

Layers, width, heads and tokens are the published ones. Gated MLPs with three matrices are replaced by plain MLPs of 1.5
times the hidden width, which have the same FLOPs and parameters. Attention is bidirectional, which costs as many FLOPs
as published counts of causal attention, since these include the masked half. The output over the vocabulary, 1 % of the
FLOPs, is omitted.
"""

from ml_collections import ConfigDict

# name: (width, depth, heads, hidden, rematerialise), after MaxText's `global_parameter_scale`.
SHAPES = {
    "32b": (8192, 32, 64, 43_008, "full"),
    "32b_minimal": (8192, 32, 64, 43_008, "dots"),
    # Gemma 2B (Gemma Team, 2024); the original has one key and value head.
    "paligemma": (2048, 18, 8, 24_576, "full"),
}


def get_config(shape: str = "32b") -> ConfigDict:
    width, depth, heads, hidden, rematerialise = SHAPES[shape]
    config = ConfigDict()
    config.data = {
        "name": "synthetic",
        "letters": 2000,
        "inputs": {"text": {"length": 2048, "tokenizer": "bytes", "vocabulary": 32_000}},
    }
    if shape == "paligemma":
        config.data.inputs.text.update({"length": 384, "vocabulary": 257_152})
        config.data.inputs.image = {"size": [224, 224], "channels": 3}
    config.model = {
        "encoders": {
            "text": {
                "kind": "text_transformer",
                "width": width,
                "depth": depth,
                "heads": heads,
                "hidden": hidden,
                "rematerialise": rematerialise,
            }
        }
    }
    config.tasks = {"label": {"kind": "classification", "reads": "encoders.text"}}
    if shape == "paligemma":
        # PaliGemma prepends 256 image tokens to 128 text tokens; here all 384 are text tokens.
        config.model.encoders.image = {"kind": "vit", "variant": "So400m/14", "rematerialise": "full"}
        config.tasks.picture = {"kind": "classification", "reads": "encoders.image", "target": "label"}
    config.optimizer = {"name": "adamw", "b2": 0.95, "weight_decay": 0.1, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 1e-4, "warmup": 1000}
    config.train = {"steps": 10_000, "batch_size": 1024}
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    # As in MaxText, shard activations between the matmuls over `tensor` too.
    config.mesh.rules = [{"pattern": "width", "axes": ["tensor"]}]
    config.precision = {"compute": "bfloat16"}
    config.evaluate = {"every": 0, "splits": []}
    return config

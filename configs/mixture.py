"""Joint training on datasets with different inputs and tasks: matched digits, arithmetic on digits, and a table.

    mmjax train --config=configs/mixture.py --workdir=runs/mixture
    mmjax train --config=configs/mixture.py:prepared/tumours --workdir=runs/mixture

Each example has the inputs and targets of its own dataset; all others are absent and masked.
"""

from ml_collections import ConfigDict

from mmjax.datasets.prepared import read_manifest
from mmjax.files import user_path


def get_config(table: str = "") -> ConfigDict:
    """`table` is a prepared folder with one table input and labels; without it the mixture has two datasets."""
    trunk = {"width": 128, "depth": 2, "heads": 4}
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "mixture",
        "datasets": {"pairs": {"name": "digits", "task": "matched"}, "sums": {"name": "digits", "task": "arithmetic"}},
        "inputs": {
            "image": {"size": [8, 8], "channels": 1, "background": "dark", "crop": "content", "fit": "pad"},
            "audio": {"seconds": 1.0, "trim": 25.0},
            "text": {"length": 32},
        },
        "augment": {
            "image": [{"kind": "affine", "rotate": 15.0, "shear": 0.2, "scale": 0.1, "shift": 0.08}],
            "audio": [{"kind": "speed", "change": 0.08}],
        },
        "modality_dropout": {"image": 0.15, "audio": 0.15, "text": 0.25},
        "sampling": {"weights": {"pairs": 2.0, "sums": 4.0}},
        "filter": {},
        "workers": 0,
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "patch": 4, "stride": 2, **trunk},
            "audio": {"kind": "spectrogram_transformer", "reduction": 6, "bins": 64, **trunk},
            "text": {"kind": "text_transformer", "width": 64, "depth": 1, "heads": 2},
        },
        # As in configs/digits.py: learned queries attend to the encoders, which do not attend to each other.
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
    config.tasks = {
        "digit": {"kind": "classification", "reads": "fused", "weight": 1.0},
        "answer": {"kind": "classification", "reads": "fused", "weight": 1.0},
        # Unimodal auxiliary losses: without them the fusion starts to learn much later.
        "image_digit": {"kind": "classification", "reads": "encoders.image", "weight": 0.3},
        "audio_digit": {"kind": "classification", "reads": "encoders.audio", "weight": 0.3},
        "operation": {"kind": "classification", "reads": "encoders.text", "weight": 0.3},
    }
    splits = ["pairs/test", "sums/test"]
    if table:
        manifest = read_manifest(user_path(table).absolute())
        config.data.datasets.table = {"name": "prepared", "path": table}
        config.data.sampling.weights.table = 1.0
        for name, kind in manifest["inputs"].items():
            if kind != "table":
                raise ValueError(f"{table!r} has an input of the kind {kind!r}; give one whose inputs are tables")
            if name in config.model.encoders:
                raise ValueError(f"{table!r} has an input {name!r}, as the digits have; prepare it with another name")
            config.model.encoders[name] = {"kind": "table_transformer", **trunk, "width": 64}
        for name, facts in manifest["targets"].items():
            if name in config.tasks:
                raise ValueError(f"{table!r} has a target {name!r}, as the digits have; prepare it with another name")
            kind = "classification" if "classes" in facts else "regression"
            config.tasks[name] = {"kind": kind, "reads": "fused"}
        splits += [f"table/{split}" for split in manifest["splits"] if split == "test"]
    config.optimizer = {"name": "adamw", "weight_decay": 0.05, "b2": 0.98, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 2e-3, "warmup": 100}
    # 16 examples per unit of weight: 32 pairs, 64 sums, and 16 table rows if there is a table.
    config.train = {
        "steps": 1400,
        "batch_size": 16 * int(sum(config.data.sampling.weights.values())),
        "accumulate": 1,
    }
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.precision = {"compute": "float32"}
    config.checkpoint = {"every": 700, "keep": 2}
    config.evaluate = {"every": 0, "splits": splits, "batch_size": 256}
    config.log = {"every": 50}
    return config

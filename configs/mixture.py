"""Several datasets with different inputs and tasks in one run: digits that match, digits to compute with, and a table.

    mmjax train --config=configs/mixture.py --workdir=runs/mixture
    mmjax train --config=configs/mixture.py:prepared/tumours --workdir=runs/mixture

Each example has the inputs and the targets of its own dataset. What it lacks is absent, so that no task hears of it.
"""

import pathlib

from ml_collections import ConfigDict

from mmjax.datasets.prepared import read_manifest


def get_config(table: str = "") -> ConfigDict:
    """`table` is a folder that `mmjax prepare` made, with one table and labels; without it there are two datasets."""
    trunk = {"width": 128, "depth": 2, "heads": 4}
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "mixture",
        "of": {"pairs": {"name": "digits", "task": "matched"}, "sums": {"name": "digits", "task": "arithmetic"}},
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
        # As in configs/digits.py: learned queries read the encoders, which do not read each other.
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
        # Each encoder also answers for itself: without these losses the fusion has nothing to read for a long time.
        "image_digit": {"kind": "classification", "reads": "encoders.image", "weight": 0.3},
        "audio_digit": {"kind": "classification", "reads": "encoders.audio", "weight": 0.3},
        "operation": {"kind": "classification", "reads": "encoders.text", "weight": 0.3},
    }
    splits = ["pairs/test", "sums/test"]
    if table:
        manifest = read_manifest(pathlib.Path(table).expanduser().absolute())
        config.data.of.table = {"name": "prepared", "path": table}
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
    # 16 examples for each unit of weight: 32 pairs, 64 sums, and 16 rows of the table if there is one.
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

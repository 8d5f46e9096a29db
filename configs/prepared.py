"""Trains on a folder that `mmjax prepare` made: an encoder for each input, and a task for each target.

    mmjax train --config=configs/prepared.py:prepared/mine --workdir=runs/mine
    mmjax train --config=configs/prepared.py:prepared/mine,target=digit --workdir=runs/digit

A beginning, for data of any kind: look at what it makes of yours in `config.json`, and change what you know better.
"""

import math
import pathlib

from ml_collections import ConfigDict

from mmjax.data.prepared import ordered, read_manifest, read_statistics

_TRUNK = {"width": 128, "depth": 2, "heads": 4, "drop_path": 0.1}


def _image(measures):
    side = 64 if measures["height"]["median"] > 32 else 32
    channels = 1 if measures["channels"]["largest"] < 2 else 3
    return {"kind": "vit", "patch": side // 8}, {"size": [side, side], "channels": channels}


def _audio(measures):
    # As long as most recordings, which are cut or padded to it, but not so long that a beginning takes hours.
    seconds = float(min(10, max(1, math.ceil(measures["seconds"]["median"] + measures["seconds"]["variance"] ** 0.5))))
    return {"kind": "spectrogram_transformer", "reduction": 4}, {"sample_rate": 16000, "seconds": seconds}


def _text(measures):
    length = int(min(256, measures["bytes"]["largest"] + 1))
    return {"kind": "text_transformer"}, {"length": length, "tokenizer": "bytes"}


def _table(measures):
    # What the columns are, and by what they are standardised, the folder itself says.
    return {"kind": "table_transformer"}, {}


# For each kind of input, of what was measured: its encoder, and how raw data becomes arrays.
_INPUTS = {"image": _image, "audio": _audio, "text": _text, "table": _table}


def get_config(argument: str = "prepared/mine") -> ConfigDict:
    """`argument` is the folder, and may name the one target to learn: "prepared/mine,target=digit"."""
    folder, _, option = argument.partition(",")
    name, _, target = option.partition("=")
    path = pathlib.Path(folder).expanduser().absolute()
    manifest = read_manifest(path)
    targets = {target: manifest["targets"].get(target)} if target else manifest["targets"]
    if option and (name != "target" or not targets[target]):
        known = ", ".join(manifest["targets"])
        raise ValueError(f"{option!r} is no target of {folder!r}; give for example 'target=NAME' with one of {known}")
    config = ConfigDict()
    config.seed = 0
    measured = read_statistics(path)["train"]["columns"]
    inputs = {
        name: _INPUTS[kind](measured[name]["measures"])
        for name, kind in manifest["inputs"].items()
        if kind in _INPUTS and measured[name]["present"]
    }
    # A tokenizer that `mmjax prepare --train_tokenizer=…` trained on this data.
    for name, trained in manifest.get("tokenizers", {}).items():
        if name in inputs:
            inputs[name][1].update(
                tokenizer=str(pathlib.Path(folder) / trained["file"]), length=int(min(256, trained["longest"] + 1))
            )
    config.data = {
        "name": "prepared",
        "path": folder,
        "inputs": {name: options for name, (_, options) in inputs.items()},
        # Each input is hidden from some training examples, so that the model also learns to do without it.
        "absent": dict.fromkeys(inputs, 0.15) if len(inputs) > 1 else {},
        "augment": {},
        "workers": 0,
    }
    config.model = {
        "encoders": {name: {**encoder, **_TRUNK} for name, (encoder, _) in inputs.items()},
        "fusion": {"kind": "cross_attention", "width": 128, "depth": 1, "heads": 4, "queries": 4},
    }
    config.tasks = {}
    for name, facts in targets.items():
        kind = "classification" if "classes" in facts else "regression"
        config.tasks[name] = {"kind": kind, "reads": "fused"}
        # Each encoder also answers for itself: without these losses the fusion has nothing to read for a long time.
        for encoder in inputs if len(inputs) > 1 else ():
            reads = f"encoders.{encoder}"
            config.tasks[f"{name}_from_{encoder}"] = {"kind": kind, "target": name, "reads": reads, "weight": 0.3}
    if not config.tasks and len(inputs) > 1:
        pair = [f"encoders.{name}" for name in list(inputs)[:2]]
        config.tasks = {"pairs": {"kind": "contrastive", "pair": pair}}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 50}
    config.train = {"steps": 1000, "batch_size": 64, "accumulate": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.precision = {"compute": "float32"}
    others = [split for split in ordered(manifest["splits"]) if split != "train"]
    config.checkpoint = {"every": 250, "keep": 2}
    config.evaluate = {"every": 250 if "validation" in others else 0, "splits": others[-1:], "batch_size": 64}
    config.log = {"every": 50}
    return config

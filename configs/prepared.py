"""Trains on a folder written by `mmjax prepare`: an encoder for each input, and a task for each target.

    mmjax train --config=configs/prepared.py:prepared/mine --workdir=runs/mine
    mmjax train --config=configs/prepared.py:prepared/mine,target=digit --workdir=runs/digit

A starting point for any data: `config.json` of a run shows the derived settings; copy this recipe to change them.
"""

import math
import pathlib

from ml_collections import ConfigDict

from mmjax.datasets.prepared import read_manifest, read_statistics, sort_splits
from mmjax.files import user_path

_TRUNK = {"width": 128, "depth": 2, "heads": 4, "drop_path": 0.1}


def _image(measures):
    side = 64 if measures["height"]["median"] > 32 else 32
    channels, patch = 1 if measures["channels"]["largest"] < 2 else 3, side // 8
    # With packing, an image keeps its resolution unless it has more patches than an image of `size`.
    options = {"size": [side, side], "channels": channels, "patch": patch, "patches": 64}
    patches = min(64, math.ceil(measures["height"]["mean"] / patch) * math.ceil(measures["width"]["mean"] / patch))
    return {"kind": "vit", "patch": patch}, options, patches


def _audio(measures):
    # Cover most recordings, but at most 10 seconds, so that a first run does not take hours.
    seconds = float(min(10, max(1, math.ceil(measures["seconds"]["median"] + measures["seconds"]["variance"] ** 0.5))))
    # One token covers four frames of 10 ms.
    options = {"sample_rate": 16000, "seconds": seconds, "chunk": 640}
    tokens = math.ceil(min(seconds, measures["seconds"]["mean"]) * 25)
    return {"kind": "spectrogram_transformer", "reduction": 4}, options, tokens


def _text(measures):
    length = int(min(256, measures["bytes"]["largest"] + 1))
    options = {"length": length, "tokenizer": "bytes"}
    return {"kind": "text_transformer"}, options, min(length, math.ceil(measures["bytes"]["mean"]) + 1)


def _table(measures):
    # The prepared folder defines the columns and their standardisation.
    return {"kind": "table_transformer"}, {}, None


def _series(measures):
    # Cover most series with about 32 tokens. The prepared folder defines the channels and their standardisation.
    steps = measures["steps"]
    most = min(steps["largest"], steps["median"] + steps["variance"] ** 0.5, 4096)
    patch = max(4, math.ceil(most / 32))
    return {"kind": "series_transformer", "patch": patch}, {"length": patch * math.ceil(most / patch)}, None


def _points(measures):
    points = int(min(1024, max(64, measures["points"]["median"])))
    encoder = {"kind": "point_transformer", "groups": points // 16, "neighbours": min(32, points // 4)}
    return encoder, {"points": points}, None


def _video(measures):
    side = 64 if measures["height"]["median"] > 32 else 32
    channels = 1 if measures["channels"]["largest"] < 2 else 3
    encoder = {"kind": "video_transformer", "patch": side // 4, "tubelet": 2}
    return encoder, {"frames": 8, "size": [side, side], "channels": channels}, None


# Per kind of input: (encoder section, modality options, average tokens per example if it can be packed), derived from
# the statistics of the folder.
_INPUTS = {
    "image": _image,
    "audio": _audio,
    "text": _text,
    "table": _table,
    "series": _series,
    "points": _points,
    "video": _video,
}


def get_config(argument: str = "prepared/mine") -> ConfigDict:
    """`argument` is the folder, optionally with a single target: "prepared/mine,target=digit"."""
    folder, _, option = argument.partition(",")
    name, _, target = option.partition("=")
    path = user_path(folder).absolute()
    manifest = read_manifest(path)
    targets = {target: manifest["targets"].get(target)} if target else manifest["targets"]
    if option and (name != "target" or not targets[target]):
        known = ", ".join(manifest["targets"])
        raise ValueError(f"{option!r} is no target of {folder!r}; give for example 'target=NAME' with one of {known}")
    if several := [name for name, facts in targets.items() if facts["kind"] == "labels"]:
        others = [name for name, facts in manifest["targets"].items() if facts["kind"] != "labels"]
        remedy = f"give 'target={others[0]}'" if others else "prepare the data with another target"
        raise ValueError(f"{several[0]!r} is a multi-label target, which no task can learn yet; {remedy}")
    config = ConfigDict()
    config.seed = 0
    measured = read_statistics(path)["train"]["columns"]
    inputs = {
        name: _INPUTS[kind](measured[name]["measures"])
        for name, kind in manifest["inputs"].items()
        if kind in _INPUTS and measured[name]["present"]
    }
    # Tokenizer trained by `mmjax prepare --train_tokenizer=…`.
    for name, trained in manifest.get("tokenizers", {}).items():
        if name in inputs:
            inputs[name][1].update(
                tokenizer=str(pathlib.Path(folder) / trained["file"]), length=int(min(256, trained["longest"] + 1))
            )
    config.data = {
        "name": "prepared",
        "path": folder,
        "inputs": {name: options for name, (_, options, _) in inputs.items()},
        # Modality dropout teaches the model to handle missing inputs.
        "modality_dropout": dict.fromkeys(inputs, 0.15) if len(inputs) > 1 else {},
        "augment": {},
        # --config.data.packing.slots=16 enables packing: about eight average examples fill a row.
        "packing": {"slots": 1, "budgets": {name: 8 * tokens for name, (_, _, tokens) in inputs.items() if tokens}},
        "workers": -1,
    }
    config.model = {
        "encoders": {name: {**encoder, **_TRUNK} for name, (encoder, _, _) in inputs.items()},
        "fusion": {"kind": "cross_attention", "width": 128, "depth": 1, "heads": 4, "queries": 4},
    }
    config.tasks = {}
    for name, facts in targets.items():
        kind = "classification" if "classes" in facts else "regression"
        config.tasks[name] = {"kind": kind, "reads": "fused"}
        # Unimodal auxiliary losses: without them the fusion starts to learn much later.
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
    others = [split for split in sort_splits(manifest["splits"]) if split != "train"]
    config.checkpoint = {"every": 250, "keep": 2}
    config.evaluate = {"every": 250 if "validation" in others else 0, "splits": others[-1:], "batch_size": 64}
    config.log = {"every": 50}
    return config

"""AV-MNIST: MNIST images paired with recordings of spoken digits; the test speakers do not occur in training.

    mmjax train --config=configs/avmnist.py:matched --workdir=runs/avmnist --config.data.path=/data/digits
    mmjax train --config=configs/avmnist.py:arithmetic,speaker=jackson --workdir=runs/jackson
    mmjax train --config=configs/avmnist.py:matched,inputs=audio --workdir=runs/audio

`configs/digits.py` has the same tasks on data that needs no files.
"""

from ml_collections import ConfigDict

INPUTS = {"arithmetic": ("image", "audio", "text"), "matched": ("image", "audio")}


def get_config(argument: str = "arithmetic") -> ConfigDict:
    """`argument` is "arithmetic" or "matched", optionally with the test speaker and the inputs of `matched`.

    As in "matched,speaker=jackson,inputs=audio"; a matched model reads image and audio by default.
    """
    task, *words = argument.split(",")
    options = dict(word.partition("=")[::2] for word in words)
    speaker, inputs = options.pop("speaker", None), options.pop("inputs", None)
    if task not in INPUTS or options or "" in (speaker, inputs) or inputs not in (None, "image", "audio"):
        raise ValueError(f"{argument!r} is no argument of this recipe; give for example 'matched,speaker=jackson'")
    if inputs and task == "arithmetic":
        raise ValueError("arithmetic needs all of its inputs; leave `inputs` out")
    names = (inputs,) if inputs else INPUTS[task]
    trunk = {"width": 128, "depth": 2, "heads": 4, "dropout": 0.0, "drop_path": 0.1}
    smooth = {"label_smoothing": 0.1}
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "avmnist",
        "task": task,
        "path": "",
        "held_out": speaker or None,
        "validation": None,
        # espeak-ng synthesises half of the digits in many voices: a few speakers alone would be memorised.
        "synthetic": 0.5,
        "inputs": {
            "image": {"size": [28, 28], "channels": 1, "background": "dark"},
            # Trim leading and trailing silence, whose length carries no information.
            "audio": {"sample_rate": 8000, "seconds": 1.0, "trim": 25.0},
            "text": {"length": 32},
        },
        # Each speaker has one pace and pitch. {"kind": "equalise"} would vary the room and the microphone as well;
        # experiments/02_avmnist/choice measures its effect.
        "augment": {
            "image": [{"kind": "affine", "rotate": 15.0, "shear": 0.2, "scale": 0.1, "shift": 0.08}],
            "audio": [
                {"kind": "speed", "change": 0.15},
                # Added noise keeps the shifted silence from being trimmed again.
                {"kind": "shift", "longest": 0.1},
                {"kind": "noise", "low": 10.0, "high": 40.0},
            ],
        },
        # Modality dropout teaches the model to handle missing inputs.
        "modality_dropout": {"image": 0.15, "audio": 0.15, "text": 0.25},
        "workers": 0,
    }
    config.model = {
        "encoders": {
            # A ResNet learns handwriting in far fewer steps than a ViT, and these runs are short.
            "image": {"kind": "resnet", "channels": 16, "blocks": [1, 1, 1], "stem_stride": 2},
            "audio": {"kind": "spectrogram_resnet", "bins": 40, "hop_ms": 10, "channels": 16, "blocks": [1, 1, 1]},
            # Half the width suffices for two dozen sentences.
            "text": {"kind": "text_transformer", **trunk, "width": 64, "heads": 2},
        },
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
    if task == "arithmetic":
        config.tasks = {
            "answer": {"kind": "classification", "reads": "fused", "weight": 1.0, **smooth},
            # Unimodal auxiliary losses: without them the fusion starts to learn much later.
            "image_digit": {"kind": "classification", "reads": "encoders.image", "weight": 0.3, **smooth},
            "audio_digit": {"kind": "classification", "reads": "encoders.audio", "weight": 0.3, **smooth},
            "operation": {"kind": "classification", "reads": "encoders.text", "weight": 0.3},
        }
    elif inputs:
        config.model.fusion = None
        config.tasks = {"digit": {"kind": "classification", "reads": f"encoders.{inputs}", **smooth}}
    else:
        config.tasks = {
            "digit": {"kind": "classification", "reads": "fused", "weight": 1.0, **smooth},
            "image_audio": {
                "kind": "contrastive",
                "pair": ["encoders.image", "encoders.audio"],
                "positives": "digit",
                "weight": 0.3,
            },
        }
    # `matched` has no text input, because the sentence contains the digit.
    for section in (config.model.encoders, config.data.inputs, config.data.augment, config.data.modality_dropout):
        for name in set(section) - set(names):
            del section[name]
    if inputs:
        config.data.modality_dropout = {}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05, "b2": 0.98, "clip": 1.0}
    config.schedule = {"kind": "cosine", "peak": 2e-3, "warmup": 100}
    config.train = {
        "steps": 1400 if task == "arithmetic" else 1200,
        "batch_size": 64,
        "accumulate": 1,
        "ema": None,
        # Mixup prevents memorising the few voices. It is not used for pairs, which it would destroy.
        "loss_transforms": [{"kind": "mixup", "alpha": 0.4}] if inputs == "audio" else [],
    }
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.precision = {"compute": "float32"}
    config.checkpoint = {"every": 500, "keep": 2}
    config.evaluate = {"every": 500, "splits": ["test"], "batch_size": 256}
    config.log = {"every": 50}
    return config

"""CLIP step of big_vision: its two towers, optimiser chain and softmax loss, from a checkout of its source.

big_vision imports TensorFlow for its data loading, which is not used here; if TensorFlow is not installed, an empty
module replaces it. The text tower always computes in float32, because it has no precision option.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pathlib
import sys
import types
from typing import Any

import contender

ROOT = pathlib.Path(__file__).parents[2]
INSTALL = "git clone https://github.com/google-research/big_vision, pip install einops scipy, --big_vision=PATH"


def measure(settings: contender.Settings) -> dict[str, Any]:
    if not settings.path or not (pathlib.Path(settings.path) / "big_vision").is_dir():
        raise contender.Missing(INSTALL)
    sys.path[:0] = [settings.path, str(ROOT)]
    try:
        bv_optax, utils, two_towers = _modules()
    except ImportError as error:
        raise contender.Missing(f"{error}; {INSTALL}") from error
    import flax
    import jax
    import jax.numpy as jnp
    import optax
    from ml_collections import ConfigDict

    size = settings.shape
    model = two_towers.Model(
        image={
            "patch_size": (size.patch, size.patch),
            "pool_type": "tok",
            "head_zeroinit": False,
            "dtype_mm": settings.precision,
            **_trunk(size, "image"),
        },
        text={"vocab_size": size.vocabulary, "pool_type": "last", **_trunk(size, "text")},
        out_dim=(size.width, size.width),
        temperature_init=1 / 0.07,
    )
    images, text = (jnp.asarray(array) for array in contender.random_batch(settings))
    config = ConfigDict(
        {
            "optax_name": "scale_by_adam",
            "optax": contender.OPTIMIZER,
            "lr": contender.LEARNING_RATE,
            "wd": contender.WEIGHT_DECAY,
            "grad_clip_norm": contender.CLIP,
            "schedule": {"decay_type": "cosine", "warmup_steps": 2000},
        }
    )
    parameters = jax.jit(lambda key: model.init(key, images[:1], text[:1])["params"])(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    steps = {"total_steps": 390_000, "batch_size": settings.batch_size, "data_size": settings.batch_size}
    optimizer, _ = bv_optax.make(config, parameters, sched_kw=steps)
    state = {"params": parameters, "opt": jax.jit(optimizer.init)(parameters)}
    del parameters

    def loss(parameters, images, text):
        image, sentence, out = model.apply({"params": parameters}, images, text, train=True)
        return utils.bidirectional_contrastive_loss(image, sentence, out["t"], reduction=True)[0]

    def update(state, images, text):
        value, gradients = jax.value_and_grad(loss)(state["params"], images, text)
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value

    step = jax.jit(update, donate_argnums=0)

    def one() -> float:
        nonlocal state
        state, value = jax.block_until_ready(step(state, images, text))
        return float(value)

    found = contender.time_steps(one, settings)
    if settings.count:
        found["flops"] = _flops(loss, state["params"], images, text)
    found["parameters"] = count
    found["versions"] = f"big_vision, JAX {jax.__version__}, Flax {flax.__version__}"
    return found


def _modules() -> tuple[Any, Any, Any]:
    # Import this first: Flax checks for TensorFlow, and must not find the empty module.
    importlib.import_module("flax.training.checkpoints")
    if importlib.util.find_spec("tensorflow") is None:
        for name in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile"):
            module = sys.modules[name] = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    names = ("big_vision.optax", "big_vision.utils", "big_vision.models.proj.image_text.two_towers")
    bv_optax, utils, two_towers = (importlib.import_module(name) for name in names)
    return bv_optax, utils, two_towers


def _trunk(size: contender.Size, part: str) -> dict[str, int]:
    width = getattr(size, f"{part}_width")
    depth, heads = getattr(size, f"{part}_depth"), getattr(size, f"{part}_heads")
    return {"width": width, "depth": depth, "mlp_dim": 4 * width, "num_heads": heads}


def _flops(loss: Any, *arguments: Any) -> int:
    """Returns three times the forward FLOPs, without the unused logits over the vocabulary."""
    import jax
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
    from jax.interpreters.partial_eval import dce_jaxpr

    from mmjax.planning import training_flops

    traced = jax.make_jaxpr(loss)(*arguments)
    needed, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars), instantiate=True)
    return training_flops(jaxpr_as_fun(ClosedJaxpr(needed, traced.consts)), *jax.tree.leaves(arguments))


if __name__ == "__main__":
    contender.run(measure)

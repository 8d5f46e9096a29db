"""CLIP step of mmjax: `configs/clip_b32.py`, as `mmjax train` runs it, with one batch that stays in memory."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import contender

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mmjax.host.huge_pages import use_huge_pages  # noqa: E402


def recipe(settings: contender.Settings) -> Any:
    """Returns the recipe with the batch size, precision and model sizes of the settings."""
    from mmjax.recipe import load_recipe

    config, size = load_recipe(str(ROOT / "configs" / "clip_b32.py")), settings.shape
    config.train.batch_size, config.precision.compute = settings.batch_size, settings.precision
    if settings.mode == "unrolled":
        for encoder in config.model.encoders.values():
            encoder.scan = False
    if settings.size != "b32":
        config.data.image, config.data.letters = [size.pixels, size.pixels, 3], size.length - 1
        config.data.inputs.image.size = [size.pixels, size.pixels]
        config.data.inputs.text.length, config.data.inputs.text.vocabulary = size.length, size.vocabulary
        for name in ("image", "text"):
            sizes = {part: getattr(size, f"{name}_{part}") for part in ("width", "depth", "heads")}
            del config.model.encoders[name].variant
            config.model.encoders[name].update(sizes)
        config.model.encoders.image.patch = size.patch
        config.tasks.image_text.width = size.width
    return config


def measure(settings: contender.Settings) -> dict[str, Any]:
    import jax

    from mmjax.experiment import Experiment
    from mmjax.planning import step_flops
    from mmjax.sharding import place_batch

    experiment = Experiment(recipe(settings))
    batch = experiment.pipeline.batch_at("train", settings.batch_size, 0)
    images, text = contender.random_batch(settings)
    inputs = {
        name: dataclasses.replace(batch.inputs[name], values=v) for name, v in (("image", images), ("text", text))
    }
    batch = dataclasses.replace(batch, inputs=inputs)
    batch = place_batch(experiment.mesh, batch, settings.batch_size)
    state, step = experiment.init_state(), experiment.compile_step()

    def one() -> float:
        nonlocal state
        state = jax.block_until_ready(step(state, batch))
        loss = state.window["loss"]
        return float(loss.total / loss.weight)

    found = contender.time_steps(one, settings)
    if settings.count:
        found["flops"] = step_flops(experiment)
    found["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(experiment.shapes.parameters))
    found["versions"] = f"JAX {jax.__version__}"
    return found


if __name__ == "__main__":
    # `mmjax train` does the same.
    use_huge_pages()
    contender.run(measure)

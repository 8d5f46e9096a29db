"""Plans the SigLIP step of big_vision with the planner of `mmjax plan`, for the same batch, chips and compiler.

    git clone https://github.com/google-research/big_vision
    pip install einops scipy
    python experiments/03_plans/big_vision.py --big_vision=big_vision              # missing plans
    python experiments/03_plans/big_vision.py --big_vision=big_vision siglip_l16   # plans whose names contain this

Towers, loss, optimiser and metrics are those of its trainer `siglip.py`; its rule `fsdp` shards parameters and moments
over all chips. Layers are unrolled without rematerialisation, its default; if that does not fit, they are scanned with
full rematerialisation. Its text tower has no option for bfloat16; here it computes in bfloat16 like the image tower, in
favour of big_vision. Results are stored in `plans.json`; `plans.py --tables` writes the table.
"""

from __future__ import annotations

import functools
import importlib
import json
import pathlib
import sys
import types
from typing import Any

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER), str(ROOT / "benchmarks" / "peers")]

from plans import BESIDE, TOPOLOGIES, beside_name, kept, read_record  # noqa: E402

SIZES = {
    # recipe: (variant of the towers, pixels)
    "siglip_l16": ("L/16", 256),
    "siglip_b16": ("B/16", 256),
    "siglip_so400m": ("So400m/14", 224),
}
TEXT = (64, 32_000)
ADAM = {"b1": 0.9, "b2": 0.95, "mu_dtype": "float32"}


class Step:
    """Training step of big_vision as a `mmjax.planning.plan.Plannable`."""

    def __init__(self, modules: Any, sharding: Any, recipe: str, batch_size: int, devices: Any, scan: bool):
        import jax
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from ml_collections import ConfigDict

        self.jax, (self.optimizers, _, two_towers) = jax, modules
        self.mesh = Mesh(np.array(devices).reshape(-1), ("data",))
        self.config = types.SimpleNamespace(train=types.SimpleNamespace(batch_size=batch_size))
        self.examples_per_step = float(batch_size)
        variant, pixels = SIZES[recipe]
        trunk = {"variant": variant.partition("/")[0], "pool_type": "map", "scan": scan}
        image = {**trunk, "variant": variant, "dtype_mm": "bfloat16"}
        width = importlib.import_module("big_vision.models.vit").decode_variant(variant)["width"]
        # Initial temperature and bias of the published models.
        self.model = two_towers.Model(
            image=image, text={**trunk, "vocab_size": TEXT[1]}, out_dim=(None, width), temperature_init=10.0,
            bias_init=-10.0,
        )  # fmt: skip
        shapes = {"image": ((pixels, pixels, 3), np.float32), "labels": ((TEXT[0],), np.int32)}
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        self.batch = {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)
            for name, (shape, dtype) in shapes.items()
        }

        def init(key):
            one = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in shapes.items()}
            return self.model.init(key, one["image"], one["labels"])["params"]

        parameters = jax.eval_shape(init, jax.random.key(0))
        config = ConfigDict(
            {
                "optax_name": "scale_by_adam", "optax": ADAM, "lr": 1e-3, "wd": 1e-4, "grad_clip_norm": 1.0,
                "schedule": {"decay_type": "cosine", "warmup_steps": 10_000},
            }
        )  # fmt: skip
        steps = {"total_steps": 1_000_000, "batch_size": batch_size, "data_size": batch_size}
        self.optimizer, _ = self.optimizers.make(config, parameters, sched_kw=steps)
        state = {"params": parameters, "opt": jax.eval_shape(self.optimizer.init, parameters)}
        self.shardings = sharding.infer_sharding(state, [(".*", 'fsdp(axis="data")')], self.mesh)
        self.whole = NamedSharding(self.mesh, PartitionSpec())
        self.state = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state, self.shardings
        )
        self.shapes = types.SimpleNamespace(parameters=parameters)

    @property
    def abstract_batch(self):
        return self.batch

    def loss(self, parameters, batch):
        jnp = self.jax.numpy
        image, text, out = self.model.apply({"params": parameters}, batch["image"], batch["labels"], train=True)
        logits = jnp.dot(image, text.T) * out["t"] + out["b"]
        signs = -jnp.ones_like(logits) + 2 * jnp.eye(image.shape[0])
        return jnp.mean(-jnp.sum(self.jax.nn.log_sigmoid(signs * logits), axis=-1))

    def objective(self, parameters, batch):
        """Loss without the logits over the vocabulary, which the text tower computes but the loss does not use."""
        from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
        from jax.interpreters.partial_eval import dce_jaxpr

        traced = self.jax.make_jaxpr(self.loss)(parameters, batch)
        needed, _ = dce_jaxpr(traced.jaxpr, [True], instantiate=True)
        return jaxpr_as_fun(ClosedJaxpr(needed, traced.consts))(*self.jax.tree.leaves((parameters, batch)))

    def update(self, state, batch):
        import optax

        jax, jnp = self.jax, self.jax.numpy
        loss, gradients = jax.value_and_grad(self.loss)(state["params"], batch)
        updates, opt = self.optimizer.update(gradients, state["opt"], state["params"])
        parameters = optax.apply_updates(state["params"], updates)
        measured = {"loss": loss}
        for name, tree in (("gradients", gradients), ("parameters", parameters), ("updates", updates)):
            measured[name] = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))
        return {"params": parameters, "opt": opt}, measured

    def lower_step(self):
        # Deduplicate the code of equal layers, as mmjax does: same cycles, less memory, also of the compiler.
        options = {"xla_tpu_enable_deduplicated_calls": "ENABLED"}
        shardings = (self.shardings, self.whole)
        step = self.jax.jit(self.update, donate_argnums=0, out_shardings=shardings, compiler_options=options)
        return step.lower(self.state, self.batch)

    def trace_step(self):
        return self.jax.make_jaxpr(self.update)(self.state, self.batch)


def main(arguments: list[str]) -> int:
    path = next((word.partition("=")[2] for word in arguments if word.startswith("--big_vision=")), "")
    words = [word for word in arguments if not word.startswith("--")]
    if not path or not (pathlib.Path(path) / "big_vision").is_dir():
        print(
            "big_vision.py: error: --big_vision: give the folder of its source; see this file's docstring",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, path)
    import big_vision_clip

    modules = big_vision_clip._modules()
    vit = importlib.import_module("big_vision.models.vit")
    # Changes the default dtype for the text tower; the image tower sets its own.
    vit.Encoder = functools.partial(vit.Encoder, dtype_mm="bfloat16")
    sharding = importlib.import_module("big_vision.sharding")

    from mmjax.planning import topology_devices
    from mmjax.planning.plan import make_plan

    for (recipe, place), examples, _ in BESIDE:
        name = f"big_vision {beside_name(recipe, place, examples)}"
        if words and not any(word in name for word in words):
            continue
        if name in read_record() and "--again" not in arguments:
            continue
        topology = TOPOLOGIES[place][0].partition("=")[2]
        devices = topology_devices(topology)
        for scan in (False, True):
            step = Step(modules, sharding, recipe, examples * len(devices), devices, scan)
            plan, _ = make_plan(name, topology, step)
            if plan.fits:
                break
        found = kept(name, {**json.loads(json.dumps(plan.as_dict())), "full_rematerialisation": scan})
        print(name, {key: found.get(key) for key in ("fits", "peak_bytes", "step_seconds", "utilisation")}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

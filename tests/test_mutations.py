"""Would the tests notice a mistake? Each mutation breaks a copy of the package in one place, and they have to fail.

The list covers what no shape and no type checks: masks, weights, the order of rows, keys of random draws, the guard,
and what a resumed run relies on. Each text to replace has to occur exactly once, so that the list cannot rot silently.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 280


@dataclasses.dataclass(frozen=True)
class Mutation:
    """`before` becomes `after` in a file of the package; `tests` are arguments of pytest that must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    slow: bool = True

    def __str__(self):
        return self.name


ABSENCE = ("tests/test_contracts.py", "-k", "absent_changes and fusion-concatenation")
MICROBATCHES = ("tests/test_contracts.py", "-k", "microbatches and fusion-concatenation")
MICROBATCHES_OF_PAIRS = ("tests/test_contracts.py", "-k", "microbatches and task-contrastive")
RECORDINGS = ("tests/test_spectrogram.py", "-k", "packed_recordings")
PACKED = ("tests/test_contracts.py", "-k", "packed and fusion-cross_attention")
WEIGHTS = ("tests/test_masks.py", "-k", "counts_as_often")
PAIRS = ("tests/test_masks.py", "-k", "lacks_one_of_a_pair")
RING_OF_PAIRS = ("tests/test_pairs.py", "-k", "definition")
RING_OF_TOKENS = ("tests/test_attention.py", "-k", "over_split_tokens")
EACH_MESH = "test_each_mesh_gives_the_loss_and_all_gradients_of_one_device"
GUARD = ("tests/test_step.py", "-k", "not_finite")
WINDOW = ("tests/test_step.py", "-k", "window")
ROWS = ("tests/test_step.py", "-k", "restored_step or torn")

MUTATIONS = [
    # Masks.
    Mutation(
        "tokens keep what is masked",
        "tokens.py",
        "        values = jnp.where(mask[..., None], values, 0)\n        return Tokens(values, mask",
        "        return Tokens(values, mask",
        ("tests/test_masks.py", "-k", "zero_where"),
    ),
    Mutation(
        "tokens keep what is masked after a layer",
        "tokens.py",
        "values=jnp.where(self.mask[..., None], values, 0))",
        "values=values)",
        ("tests/test_masks.py", "-k", "zero_where"),
    ),
    Mutation(
        "absent inputs stay",
        "tokens.py",
        "return jnp.where(valid, values, jnp.zeros((), values.dtype))",
        "return values",
        ABSENCE,
    ),
    Mutation(
        "targets without weight stay",
        "tokens.py",
        "Target(zero(t.weight > 0, t.values), t.weight)",
        "Target(t.values, t.weight)",
        # Class indices out of range make a row of zeros: only soft targets carry a NaN.
        ("tests/test_masks.py", "-k", "soft_targets"),
    ),
    Mutation(
        "a query that sees nothing averages everything",
        "layers/attention/softmax.py",
        "weights = jnp.where(visible, jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)",
        "weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))",
        ("tests/test_masks.py", "-k", "sees_no_key"),
        slow=False,
    ),
    Mutation(
        "the largest hidden key scales the visible ones",
        "layers/attention/softmax.py",
        "    logits = jnp.where(visible, logits, MASKED_LOGIT)\n",
        "",
        ("tests/test_masks.py", "-k", "not_visible"),
    ),
    Mutation(
        "padding is seen",
        "layers/attention/attend.py",
        "jnp.where(keys.mask, keys.segments, -2)",
        "keys.segments",
        ("tests/test_masks.py", "-k", "padding"),
    ),
    Mutation(
        "segments see each other",
        "layers/attention/attend.py",
        "jnp.where(queries.mask, queries.segments, -1), jnp.where(keys.mask, keys.segments, -2)",
        "jnp.where(queries.mask, 0, -1), jnp.where(keys.mask, 0, -2)",
        ("tests/test_masks.py", "-k", "segments"),
    ),
    Mutation(
        "pooling divides by the length of the padding",
        "layers/pooling.py",
        "count = tokens.mask.sum(axis=1, dtype=jnp.float32)",
        "count = jnp.ones_like(tokens.mask).sum(axis=1, dtype=jnp.float32)",
        ("tests/test_masks.py", "-k", "padding"),
    ),
    Mutation(
        "pairs that are not there are negatives",
        "tasks/losses/pairs.py",
        "    valid = rows.valid[:, None] & columns.valid[None, :]\n",
        "    valid = jnp.ones(cosines.shape, bool)\n",
        PAIRS,
    ),
    Mutation(
        "pairs that are not there are positives",
        "tasks/losses/pairs.py",
        "return cosines, valid & (",
        "return cosines, (",
        PAIRS,
    ),
    # Examples that share rows.
    Mutation(
        "a mean is that of all examples of a row",
        "layers/pooling.py",
        "members = tokens.members.astype(jnp.float32)",
        "members = (tokens.members | tokens.mask[:, None]).astype(jnp.float32)",
        PACKED,
    ),
    Mutation(
        "what is read out reads the first example of a row",
        "tokens.py",
        "jnp.repeat(jnp.arange(slots, dtype=jnp.int32), count)",
        "jnp.repeat(jnp.zeros(slots, jnp.int32), count)",
        PACKED,
    ),
    Mutation(
        "an example is there where its row is",
        "tokens.py",
        "return mask[:, None] & (segments[:, None] == np.arange(slots, dtype=np.int32)[:, None])",
        "return mask[:, None] & (segments[:, None] >= 0 * np.arange(slots, dtype=np.int32)[:, None])",
        PACKED,
    ),
    Mutation(
        "dropout depends on the place in the row",
        "layers/randomness.py",
        "indices = jnp.where(members, index_in_slot, 0).sum(axis=1, dtype=jnp.uint32)",
        "indices = jnp.broadcast_to(jnp.arange(index_in_slot.shape[2], dtype=jnp.uint32), tokens.mask.shape)",
        PACKED,
    ),
    Mutation(
        "frames reach into the next recording of a row",
        "layers/spectrogram.py",
        "return inputs.mask & _shifted(inputs.mask, shift) & (inputs.segments == _shifted(inputs.segments, shift))",
        "return inputs.mask & _shifted(inputs.mask, shift)",
        RECORDINGS,
    ),
    Mutation(
        "what follows a packed recording is no silence",
        "layers/spectrogram.py",
        "jnp.where(same, _shifted(part, shift), SILENT_FRAME)",
        "jnp.where(same, _shifted(part, shift), 0.0)",
        RECORDINGS,
    ),
    Mutation(
        "microbatches tear the examples of a row apart",
        "training/estimators/accumulated.py",
        "grouped = x.reshape(rows // self.microbatches, self.microbatches, -1, *x.shape[1:]).swapaxes(0, 1)",
        "grouped = x.reshape(-1, self.microbatches, 1, *x.shape[1:]).swapaxes(0, 1)",
        ("tests/test_contracts.py", "-k", "packed and task-contrastive"),
    ),
    # What a plan counts.
    Mutation(
        "kernels cost their FLOPs and ignore the compiler's cycles",
        "planning/kernels.py",
        "return max(self.static_seconds or self.flops_seconds, self.bytes_seconds)",
        "return max(self.flops_seconds, self.bytes_seconds)",
        ("tests/test_kernels.py", "-k", "cost_of_a_kernel"),
    ),
    Mutation(
        "bundles of a nested loop run as often as those of the outer loop",
        "planning/kernel_compiler.py",
        "executions.append(executions[-1] * count)",
        "executions.append(count)",
        ("tests/test_kernels.py", "-k", "bundles_count"),
    ),
    Mutation(
        "links have no latency",
        "planning/collectives.py",
        "seconds = max(seconds, rounds * topology.hops * chip.hop_seconds)",
        "seconds = max(seconds, 0.0)",
        ("tests/test_step_time.py", "-k", "links_have"),
    ),
    Mutation(
        "prefetches have the whole bandwidth beside an instruction",
        "planning/schedule.py",
        "self.progress_transfers(max(0.0, seconds - busy))",
        "self.progress_transfers(max(0.0, seconds))",
        ("tests/test_step_time.py", "-k", "prefetch"),
    ),
    Mutation(
        "microbatches keep the activations of the whole batch",
        "planning/lower_bound.py",
        "residual_bytes(experiment) // microbatches // experiment.mesh.size",
        "residual_bytes(experiment) // experiment.mesh.size",
        ("tests/test_lower_bound.py", "-k", "keeps_its_input"),
    ),
    # What devices send each other.
    Mutation(
        "what the devices of a group add up is not merged",
        "tasks/losses/pairs.py",
        "_local_rows(loss.merge(row_sums, group), group, size)",
        "_local_rows(row_sums, group, size)",
        RING_OF_PAIRS,
    ),
    Mutation(
        "gradients of a group's rows are not summed over it",
        "tasks/losses/pairs.py",
        "jax.lax.psum_scatter(grad_first, group, tiled=True)",
        "_local_rows(grad_first, group, first.shape[0])",
        RING_OF_PAIRS,
    ),
    Mutation(
        "devices keep their sums to themselves",
        "tasks/losses/pairs.py",
        "*(jax.lax.psum(x, axes) for x in scalars)",
        "*scalars",
        RING_OF_PAIRS,
        slow=False,
    ),
    Mutation(
        "nobody goes around",
        "sharding/ring.py",
        "jax.tree.map(lambda x: jax.lax.ppermute(x, tuple(axes), next_device), block)",
        "block",
        RING_OF_PAIRS,
        slow=False,
    ),
    Mutation(
        "visitors do not come home",
        "sharding/ring.py",
        "(carry, block), length=count)",
        "(carry, block), length=count - 1)",
        RING_OF_TOKENS,
    ),
    Mutation(
        "what was seen before a larger logit keeps its weight",
        "layers/attention/sequence.py",
        "total * rescale + weights",
        "total + weights",
        RING_OF_TOKENS,
    ),
    Mutation(
        "keys come home without their gradient",
        "layers/attention/sequence.py",
        'key_grad = visitor["key_grad"] + einsum',
        "key_grad = einsum",
        RING_OF_TOKENS,
    ),
    Mutation(
        "heads are exchanged without their segments",
        "layers/attention/sequence.py",
        "jax.lax.all_gather(x, axes, axis=1, tiled=True)",
        "jnp.tile(x, (1, jax.lax.axis_size(axes)))",
        RING_OF_TOKENS,
    ),
    Mutation(
        "convolutions are split along space",
        "layers/convolution.py",
        '        y = shard(y, "batch", *("none",) * (y.ndim - 1))\n',
        "",
        (f"tests/test_equivalence.py::{EACH_MESH}[data=2 x sequence=2 x tensor=2]",),
    ),
    Mutation(
        "parameters are gathered all at once",
        "layers/stack.py",
        "        first = 0\n",
        "        from mmjax.sharding import shard\n"
        '        layers = jax.tree.map(lambda x: shard(x, *("none",) * x.ndim), layers)\n        first = 0\n',
        ("tests/test_mesh.py", "-k", "layer_at_a_time"),
    ),
    # What is kept.
    Mutation(
        "no product has a name",
        "layers/linear.py",
        "return checkpoint_name(y, WIDE_PRODUCT if y.shape[-1] > x.shape[-1] else PRODUCT)",
        "return y",
        ("tests/test_stack.py", "-k", "not_kept"),
    ),
    Mutation(
        "moments are rounded to the nearest",
        "training/optim/moments.py",
        "(bits + draws)",
        "(bits + jnp.uint32(0x8000))",
        ("tests/test_optimizers.py", "-k", "on_average"),
    ),
    # Weights.
    Mutation(
        "all examples weigh the same",
        "training/objective.py",
        "(tasks[name].losses(features[name], batch) * weights).sum()",
        "tasks[name].losses(features[name], batch).sum()",
        WEIGHTS,
        slow=False,
    ),
    Mutation(
        "examples without input count",
        "tasks/classification.py",
        "batch.targets[self.target].weight * presence(batch, self.config.reads)",
        "batch.targets[self.target].weight",
        WEIGHTS,
    ),
    Mutation(
        "metrics forget the weights",
        "tasks/metrics.py",
        "return cls((values * weights).sum(dtype=jnp.float32), weights.sum(dtype=jnp.float32))",
        "return cls(values.sum(dtype=jnp.float32), weights.sum(dtype=jnp.float32))",
        WEIGHTS,
    ),
    Mutation(
        "each microbatch divides by its own weights",
        "training/estimators/accumulated.py",
        "objective.loss(parameters, features, microbatch, weight_sums, uncoupled)",
        "objective.loss(parameters, features, microbatch, objective.weight_sums(parameters, microbatch), uncoupled)",
        MICROBATCHES,
        slow=False,
    ),
    # What belongs together over microbatches, devices and processes.
    Mutation(
        "features come back in another order than the examples",
        "training/estimators/accumulated.py",
        "return grouped.reshape(-1, *x.shape[2:])",
        "return x.reshape(-1, *x.shape[2:])",
        MICROBATCHES_OF_PAIRS,
    ),
    Mutation(
        "the second pass pulls no gradient back",
        "training/estimators/accumulated.py",
        "return loss + sum(jax.tree.leaves(products)), (loss, states)",
        "return loss, (loss, states)",
        MICROBATCHES_OF_PAIRS,
    ),
    Mutation(
        "dropout depends on the row",
        "training/objective.py",
        "Randomness.make(self.seed, batch.step, batch.ids)",
        "Randomness.make(self.seed, batch.step, jnp.arange(batch.size))",
        MICROBATCHES,
    ),
    Mutation(
        "every process loads the first rows",
        "sharding/placement.py",
        "    return np.unique(np.concatenate([np.arange(rows)[index] for index in slices]))",
        "    return np.arange(len(np.unique(np.concatenate([np.arange(rows)[index] for index in slices]))))",
        ("tests/test_processes.py", "-k", "gradients"),
    ),
    Mutation(
        "activations are not constrained",
        "sharding/rules.py",
        "x if mesh is None else jax.lax.with_sharding_constraint(x, spec_for(mesh, names, x.shape))",
        "x",
        ("tests/test_equivalence.py", "-k", "constrains"),
    ),
    Mutation(
        "moments stay whole on every device",
        "training/step.py",
        "return sharding if tuple(leaf.shape) == tuple(shape) else whole",
        "return whole",
        ("tests/test_equivalence.py", "-k", "moments"),
    ),
    # What a run and a resumed run rely on.
    Mutation(
        "the window never begins anew",
        "training/step.py",
        "fresh = state.data_step % self.log_every == 0",
        "fresh = state.data_step < 0",
        WINDOW,
    ),
    Mutation(
        "a gradient that is not finite is applied",
        "training/step.py",
        "lambda n, o: jnp.where(finite, n, o), new, old",
        "lambda n, o: n, new, old",
        GUARD,
    ),
    Mutation(
        "a skipped step stays in the metrics",
        "training/step.py",
        "        states = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), states)\n",
        "",
        GUARD,
    ),
    Mutation(
        "rows after the restored step stay",
        "training/metrics_log.py",
        ' and json.loads(line)["step"] <= step',
        "",
        ROWS,
    ),
    Mutation(
        "a torn row is read",
        "training/metrics_log.py",
        'line.endswith("\\n") and ',
        "",
        ROWS,
    ),
    Mutation(
        "a resumed run begins with the first batch",
        "data/pipeline.py",
        "return self._iterate(batch_function, start_step, MAX_STEP, self.workers)",
        "return self._iterate(batch_function, 0, MAX_STEP, self.workers)",
        ("tests/test_pipeline.py",),
    ),
    Mutation(
        "a resumed run forgets the moments",
        "training/checkpoint.py",
        "return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))",
        "state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))\n"
        "        import dataclasses\n"
        "        zeros = jax.tree.map(jax.numpy.zeros_like, state.optimizer)\n"
        "        return dataclasses.replace(state, optimizer=zeros)",
        ("tests/test_resume.py", "-k", "again_and_again"),
    ),
    Mutation(
        "the window is not saved at its middle",
        "training/checkpoint.py",
        "return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))",
        "state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))\n"
        "        import dataclasses\n"
        "        return dataclasses.replace(state, window=jax.tree.map(jax.numpy.zeros_like, state.window))",
        ("tests/test_resume.py", "-k", "again_and_again"),
    ),
]


class Copy:
    """A copy of the package and its tests. Only the copy is ever changed."""

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path):
        self.folder = folder
        for name in ("mmjax", "tests", "configs"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "MMJAX_CACHE": str(cache)}
        # Two files of one length within one second would be one to the cache of byte code.
        self.environment["PYTHONDONTWRITEBYTECODE"] = "1"

    def run(self, tests: tuple[str, ...]) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def mutated(self, mutation: Mutation) -> subprocess.CompletedProcess:
        path = self.folder / "mmjax" / mutation.file
        text = path.read_text()
        path.write_text(text.replace(mutation.before, mutation.after))
        try:
            return self.run(mutation.tests)
        finally:
            path.write_text(text)


@pytest.fixture(scope="module")
def copy(digits_cache, tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"), digits_cache)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_text_of_each_mutation_occurs_once(mutation):
    text = (ROOT / "mmjax" / mutation.file).read_text()
    assert text.count(mutation.before) == 1


def marked(mutation: Mutation):
    return pytest.param(mutation, id=mutation.name, marks=[pytest.mark.slow] if mutation.slow else [])


@pytest.mark.parametrize("mutation", [marked(mutation) for mutation in MUTATIONS])
def test_the_tests_notice(mutation, copy):
    done = copy.mutated(mutation)
    # 1 means that tests failed; 2 and more that they could not run, which would notice nothing.
    assert done.returncode == 1, f"survives {mutation.tests}:\n{done.stdout}{done.stderr}"
    assert " failed" in done.stdout and " error" not in done.stdout.splitlines()[-1], done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tests", dict.fromkeys(mutation.tests for mutation in MUTATIONS), ids=" ".join)
def test_the_same_tests_pass_on_an_unchanged_copy(tests, copy):
    done = copy.run(tests)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr

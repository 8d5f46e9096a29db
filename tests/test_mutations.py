"""Mutation tests: each mutation breaks a copy of the package in one place, and the named tests must fail.

The list covers errors that neither shapes nor types reveal: masks, weights, row order, random keys, the guard against
non-finite gradients, resuming, and formulas. Each text to replace must occur exactly once, so an outdated entry fails.
`python tests/mutate.py` tries all mutations; a few run by default.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.mutate import ROOT, Mutation, verdict
from tests.mutations_of_formulas import FORMULAS
from tests.mutations_of_rooms import ROOMS

ABSENCE = ("tests/test_contracts.py", "-k", "absent_changes and fusion-concatenation")
MICROBATCHES = ("tests/test_contracts.py", "-k", "microbatches and fusion-concatenation")
MICROBATCHES_OF_PAIRS = ("tests/test_contracts.py", "-k", "microbatches and task-contrastive")
RECORDINGS = ("tests/test_spectrogram.py", "-k", "packed_recordings")
PADDING = ("tests/test_padding.py", "-k", "waveform_cnn")
PACKED = ("tests/test_contracts.py", "-k", "packed and fusion-cross_attention")
WEIGHTS = ("tests/test_masks.py", "-k", "weight_of_n")
PAIRS = ("tests/test_masks.py", "-k", "lacks_one_of_a_pair")
RING_OF_PAIRS = ("tests/test_pairs.py", "-k", "definition")
RING_OF_TOKENS = ("tests/test_attention.py", "-k", "over_split_tokens")
EACH_MESH = "test_each_mesh_gives_the_loss_and_all_gradients_of_one_device"
GUARD = ("tests/test_step.py", "-k", "skipped_step")
WINDOW = ("tests/test_step.py", "-k", "window")
OPTIMIZERS = ("tests/test_optimizers.py", "-k", "treats_the_layers")
SCHEDULES = ("tests/test_schedules.py", "-k", "closed_form")
ROWS = ("tests/test_step.py", "tests/test_metrics_log.py", "-k", "restored_step or damaged")


def formula(name: str) -> tuple[str, ...]:
    return ("tests/test_formulas.py", "-k", name)


LISTED = [
    # Masks.
    Mutation(
        "masked tokens keep their values",
        "tokens.py",
        "        values = jnp.where(mask[..., None], values, 0)\n        return Tokens(values, mask",
        "        return Tokens(values, mask",
        ("tests/test_masks.py", "-k", "zero_where"),
    ),
    Mutation(
        "masked tokens keep their values after a layer",
        "tokens.py",
        "values=jnp.where(self.mask[..., None], values, 0))",
        "values=values)",
        ("tests/test_masks.py", "-k", "zero_where"),
    ),
    Mutation(
        "absent inputs are not zeroed",
        "tokens.py",
        "return jnp.where(valid, values, jnp.zeros((), values.dtype))",
        "return values",
        ABSENCE,
    ),
    Mutation(
        "targets without weight are not zeroed",
        "tokens.py",
        "Target(zero(t.weight > 0, t.values), t.weight)",
        "Target(t.values, t.weight)",
        # Class ids out of range have a row of zeros; only soft targets can carry a NaN.
        ("tests/test_masks.py", "-k", "soft_targets"),
    ),
    Mutation(
        "a query without keys averages all values",
        "layers/attention/softmax.py",
        "weights = jnp.where(visible, jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)",
        "weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))",
        ("tests/test_masks.py", "-k", "sees_no_key"),
        slow=False,
    ),
    Mutation(
        "the largest masked key enters the softmax maximum",
        "layers/attention/softmax.py",
        "    logits = jnp.where(visible, logits, MASKED_LOGIT)\n",
        "",
        ("tests/test_masks.py", "-k", "not_visible"),
    ),
    Mutation(
        "padding tokens are attended to",
        "layers/attention/attend.py",
        "jnp.where(keys.mask, keys.segments, -2)",
        "keys.segments",
        ("tests/test_masks.py", "-k", "padding"),
    ),
    Mutation(
        "segments attend to each other",
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
        "invalid pairs are negatives",
        "tasks/losses/pairs.py",
        "    valid = rows.valid[:, None] & columns.valid[None, :]\n",
        "    valid = jnp.ones(cosines.shape, bool)\n",
        PAIRS,
    ),
    Mutation(
        "invalid pairs are positives",
        "tasks/losses/pairs.py",
        "return cosines, valid & (",
        "return cosines, (",
        PAIRS,
    ),
    # Packed examples.
    Mutation(
        "mean pooling averages over all examples of a row",
        "layers/pooling.py",
        "members = tokens.members.astype(jnp.float32)",
        "members = (tokens.members | tokens.mask[:, None]).astype(jnp.float32)",
        PACKED,
    ),
    Mutation(
        "latents attend to the first example of a row",
        "tokens.py",
        "jnp.repeat(jnp.arange(slots, dtype=jnp.int32), count)",
        "jnp.repeat(jnp.zeros(slots, jnp.int32), count)",
        PACKED,
    ),
    Mutation(
        "an example is present if its row is",
        "tokens.py",
        "return mask[:, None] & (segments[:, None] == np.arange(slots, dtype=np.int32)[:, None])",
        "return mask[:, None] & (segments[:, None] >= 0 * np.arange(slots, dtype=np.int32)[:, None])",
        PACKED,
    ),
    Mutation(
        "dropout depends on the position in the row",
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
        "frames after a packed recording are not zero",
        "layers/spectrogram.py",
        "((index >= 0) & (index * self.hop < samples))[..., None]",
        "(index >= 0)[..., None]",
        RECORDINGS,
    ),
    Mutation(
        "twice as many records as the limit may be unreadable",
        "data/pipeline.py",
        "if len(broken) > self.max_broken * len(self._source(split)):",
        "if len(broken) > 2 * self.max_broken * len(self._source(split)):",
        ("tests/test_pipeline.py", "-k", "more_broken_records"),
        slow=False,
    ),
    Mutation(
        "raw numbers are rounded to float32 before they are centred",
        "modalities/raw_files.py",
        "    values = values.astype(np.float64)\n",
        "    values = values.astype(np.float32).astype(np.float64)\n",
        ("tests/test_series.py", "-k", "centred_before"),
        slow=False,
    ),
    Mutation(
        "targets are rounded to float32 before they are centred",
        "tokens.py",
        "return (np.asarray(value, np.float64) - self.mean) / self.std",
        "return (np.asarray(value, np.float32) - np.float32(self.mean)) / self.std",
        ("tests/test_regression.py", "-k", "centred_before"),
        slow=False,
    ),
    Mutation(
        "scaling moves the mean of a channel",
        "modalities/augmentation/series_scaling.py",
        "mean + (values - mean) * rng",
        "values * rng",
        ("tests/test_series.py", "-k", "commutes_with_an_offset"),
        slow=False,
    ),
    Mutation(
        "the noise level includes the offset of the recorder",
        "modalities/augmentation/noise.py",
        "np.std(samples, dtype=np.float64)",
        "np.sqrt(np.mean(np.square(samples)))",
        ("tests/test_augmentation.py", "-k", "constant_offset"),
        slow=False,
    ),
    Mutation(
        "the vocabulary size is the number of tokens, not the largest id",
        "modalities/text.py",
        "max(ids, default=-1) + 1",
        "tokenizer.get_vocab_size()",
        ("tests/test_modalities.py", "-k", "vocabulary_with_gaps"),
        slow=False,
    ),
    Mutation(
        "padding of a tokenizer file counts as text",
        "modalities/text.py",
        "    tokenizer.no_padding()\n",
        "",
        ("tests/test_modalities.py", "-k", "padding_and_truncation"),
        slow=False,
    ),
    Mutation(
        "predict reads frames that no record stores",
        "modalities/clips.py",
        "read_frame(encode_frame(clip.frames[index]))",
        "clip.frames[index]",
        ("tests/test_same_inputs.py", "-k", "video"),
    ),
    Mutation(
        "24-bit samples are right-justified",
        "modalities/recordings.py",
        "wide[:, 4 - width :]",
        "wide[:, :width]",
        ("tests/test_recordings.py", "-k", "soundfile"),
        slow=False,
    ),
    Mutation(
        "group norm averages over the padding",
        "layers/norms.py",
        "count = jnp.maximum(valid.sum(axis=1, dtype=jnp.float32), 1.0)",
        "count = jnp.full((x.shape[0], 1), valid.shape[1], jnp.float32)",
        PADDING,
    ),
    Mutation(
        "the left padding of a convolution depends on the length",
        "layers/convolution.py",
        "            left = left_padding(kernel, stride)\n",
        "            left = max((-(-length // stride) - 1) * stride + kernel - length, 0) // 2\n",
        PADDING,
    ),
    Mutation(
        "microbatches split the examples of a row",
        "training/estimators/accumulated.py",
        "grouped = x.reshape(rows // self.microbatches, self.microbatches, -1, *x.shape[1:]).swapaxes(0, 1)",
        "grouped = x.reshape(-1, self.microbatches, 1, *x.shape[1:]).swapaxes(0, 1)",
        ("tests/test_contracts.py", "-k", "packed and task-contrastive"),
    ),
    # Figures of a plan.
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
    Mutation(
        "the search for a change that fits expects nothing of microbatches",
        "planning/search.py",
        "activations / change.accumulate) / change.divisor",
        "activations) / change.divisor",
        ("tests/test_lower_bound.py", "-k", "first_compiled_change"),
    ),
    # Collectives.
    Mutation(
        "partial sums of a group are not reduced",
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
        "partial sums are not reduced over devices",
        "tasks/losses/pairs.py",
        "*(jax.lax.psum(x, axes) for x in scalars)",
        "*scalars",
        RING_OF_PAIRS,
        slow=False,
    ),
    Mutation(
        "the ring does not rotate",
        "sharding/ring.py",
        "jax.tree.map(lambda x: jax.lax.ppermute(x, tuple(axes), next_device), block)",
        "block",
        RING_OF_PAIRS,
        slow=False,
    ),
    Mutation(
        "the ring stops one step early",
        "sharding/ring.py",
        "(carry, block), length=count)",
        "(carry, block), length=count - 1)",
        RING_OF_TOKENS,
    ),
    Mutation(
        "earlier terms are not rescaled when the maximum grows",
        "layers/attention/sequence.py",
        "total * rescale + weights",
        "total + weights",
        RING_OF_TOKENS,
    ),
    Mutation(
        "gradients of rotated keys are dropped",
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
    # Checkpoints.
    Mutation(
        "matmul outputs have no checkpoint name",
        "layers/linear.py",
        "return checkpoint_name(y, WIDE_PRODUCT if y.shape[-1] > x.shape[-1] else PRODUCT)",
        "return y",
        ("tests/test_stack.py", "-k", "not_kept"),
    ),
    Mutation(
        "moments use round-to-nearest",
        "training/optim/moments.py",
        "(bits + draws)",
        "(bits + jnp.uint32(0x8000))",
        ("tests/test_optimizers.py", "-k", "on_average"),
    ),
    # Weights.
    Mutation(
        "example weights are ignored",
        "training/objective.py",
        "(losses(features[name], batch) * weights).sum()",
        "losses(features[name], batch).sum()",
        WEIGHTS,
        slow=False,
    ),
    Mutation(
        "examples without input have weight",
        "tasks/classification.py",
        "batch.targets[self.target].weight * presence(batch, self.config.reads)",
        "batch.targets[self.target].weight",
        WEIGHTS,
    ),
    Mutation(
        "metrics ignore the weights",
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
    Mutation(
        "the weight of a task is ignored",
        "training/objective.py",
        "loss += self.task_weights[name](batch.step) * mean",
        "loss += mean",
        formula("halves_the_loss"),
    ),
    Mutation(
        "a split is evaluated with the task weights of step 0",
        "evaluation/evaluator.py",
        "self.objective.eval_loss(row, step)",
        "self.objective.eval_loss(row, 0)",
        formula("loss_of_a_split"),
    ),
    # Metrics, losses and draws that have a formula.
    Mutation(
        "label smoothing spreads over the other classes",
        "tasks/classification.py",
        "smoothing / len(self.classes)",
        "smoothing / (len(self.classes) - 1)",
        formula("label_smoothing"),
    ),
    Mutation(
        "evaluation smooths labels",
        "tasks/classification.py",
        "return self._cross_entropy(features, batch, 0.0)",
        "return self._cross_entropy(features, batch, self.config.label_smoothing)",
        formula("label_smoothing"),
    ),
    Mutation(
        "NaN logits predict class 0",
        "tasks/classification.py",
        "jnp.where(jnp.isfinite(features).all(axis=-1), features.argmax(axis=-1), -1)",
        "features.argmax(axis=-1)",
        formula("predict_no_class"),
    ),
    Mutation(
        "NaN embeddings have recall 1",
        "tasks/contrastive.py",
        "((rank < k) & finite)",
        "(rank < k)",
        formula("find_no_partner"),
    ),
    Mutation(
        "the gradient vanishes above the temperature's bound",
        "tasks/contrastive.py",
        "(x < maximum) | (cotangent > 0)",
        "x < maximum",
        formula("temperature"),
    ),
    Mutation(
        "macro averages cover labelled classes only",
        "tasks/metrics.py",
        "(counts[1] > 0) | (counts[2] > 0)",
        "counts[2] > 0",
        formula("scikit_learn"),
    ),
    Mutation(
        "precision divides by the number of labels",
        "tasks/metrics.py",
        "np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)",
        "np.divide(hits, labelled, out=np.zeros_like(hits), where=labelled > 0)",
        formula("scikit_learn"),
    ),
    Mutation(
        "dropout does not rescale",
        "layers/randomness.py",
        "x / (1.0 - rate), 0)",
        "x, 0)",
        formula("dropout_keeps"),
    ),
    Mutation(
        "stochastic depth does not rescale",
        "layers/randomness.py",
        "branch / (1.0 - rate), 0)",
        "branch, 0)",
        formula("stochastic_depth"),
    ),
    Mutation(
        "stochastic depth is reversed",
        "layers/stack.py",
        "jnp.linspace(0.0, self.drop_path, self.depth)",
        "jnp.linspace(self.drop_path, 0.0, self.depth)",
        formula("stochastic_depth"),
    ),
    Mutation(
        "all layers share their draws",
        "layers/stack.py",
        "rng.fold_in(index)",
        "rng.fold_in(0)",
        formula("stochastic_depth"),
    ),
    Mutation(
        "an encoder named fusion shares the fusion's draws",
        "model.py",
        "rng.fold_in(ENCODED + name)",
        "rng.fold_in(name)",
        formula("draws_of_its_own"),
    ),
    Mutation(
        "positions use sines only",
        "layers/positions.py",
        "jnp.cos(angles)",
        "jnp.sin(angles)",
        formula("positions"),
    ),
    Mutation(
        "adversarial steps count categories and flags",
        "training/loss_transforms/adversarial.py",
        "(jnp.where(self._mask(name, x), y, 0) for y in (x, gradients[name]))",
        "(x, gradients[name])",
        formula("adversarial_step"),
    ),
    Mutation(
        "CutMix counts padding",
        "training/loss_transforms/mixing.py",
        "_count(own_mask & ~inside), _count(other_mask & inside)",
        "_count(jnp.broadcast_to(~inside, values.shape)), _count(jnp.broadcast_to(inside, values.shape))",
        formula("cutmix_shares"),
    ),
    Mutation(
        "augmentation and modality dropout ignore the step",
        "data/batching.py",
        "0, position, self._step, zlib",
        "0, position, 0, zlib",
        formula("differ_between_steps"),
    ),
    Mutation(
        "a label may equal the number of classes",
        "data/batching.py",
        "(array < len(spec.classes))",
        "(array <= len(spec.classes))",
        formula("outside_the_classes"),
    ),
    # Non-finite values.
    Mutation(
        "NaN is the best metric",
        "training/checkpoint.py",
        'return -math.inf if self.config.mode == "max" else math.inf',
        "return math.inf",
        ("tests/test_skipped_steps.py", "-k", "never_best"),
    ),
    Mutation(
        "non-consecutive skipped steps are counted",
        "training/hooks/skipped_steps.py",
        "self.updates, self.streak = updates, 0",
        "self.updates = updates",
        ("tests/test_skipped_steps.py", "-k", "survived"),
    ),
    Mutation(
        "a run rolls back into the streak",
        "training/hooks/skipped_steps.py",
        "for step in saved - self.rejected if step <= last",
        "for step in saved - self.rejected",
        ("tests/test_skipped_steps.py", "-k", "cause"),
    ),
    Mutation(
        "a rolled-back run repeats its data",
        "training/hooks/skipped_steps.py",
        "data_step=loop.state.data_step, ",
        "",
        ("tests/test_skipped_steps.py", "-k", "after_its_data"),
    ),
    Mutation(
        "predictions may be NaN",
        "evaluation/predictor.py",
        "if not all(np.isfinite(leaf[0]).all() for leaf in jax.tree.leaves(outputs)):",
        "if False:",
        ("tests/test_skipped_steps.py", "-k", "prediction"),
    ),
    # Reductions over microbatches, devices and processes.
    Mutation(
        "features come back in another order than the examples",
        "training/estimators/accumulated.py",
        "return grouped.reshape(-1, *x.shape[2:])",
        "return x.reshape(-1, *x.shape[2:])",
        MICROBATCHES_OF_PAIRS,
    ),
    Mutation(
        "the second pass propagates no gradient",
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
        "moments are replicated",
        "training/step.py",
        "return sharding if tuple(leaf.shape) == tuple(shape) else whole",
        "return whole",
        ("tests/test_equivalence.py", "-k", "moments"),
    ),
    # Optimisers and schedules.
    Mutation(
        "an optimiser treats a stack as one layer",
        "training/optim/per_layer.py",
        "    inner = optax.with_extra_args_support(inner)\n",
        "    return optax.with_extra_args_support(inner)\n",
        OPTIMIZERS,
    ),
    Mutation(
        "layers are restacked in reverse",
        "layers/stack.py",
        "for i in range(depth)))",
        "for i in reversed(range(depth))))",
        ("tests/test_stack.py", "-k", "restacked"),
        slow=False,
    ),
    Mutation(
        "embeddings decay",
        "training/optim/weight_decay.py",
        ' and not NOT_MATRICES.fullmatch(str(names[-1]) if names else "")',
        "",
        ("tests/test_optimizers.py", "-k", "determine_role"),
    ),
    Mutation(
        "norms in a stack decay",
        "training/optim/weight_decay.py",
        "leaf.ndim - layer_axes(names) >= 2",
        "leaf.ndim >= 2",
        ("tests/test_optimizers.py", "-k", "reaches_matrices or determine_role"),
    ),
    Mutation(
        "novograd decays biases",
        "training/optim/weight_decay.py",
        "lambda p, m: p if m else jnp.zeros_like(p)",
        "lambda p, m: p",
        ("tests/test_optimizers.py", "-k", "novograd"),
    ),
    Mutation(
        "adaptive clipping reduces over the first axis only",
        "training/optim/adaptive_clip.py",
        "tuple(range(x.ndim - 1)) if jnp.squeeze(x).ndim > 1",
        "tuple(range(1)) if jnp.squeeze(x).ndim > 1",
        ("tests/test_optimizers.py", "-k", "each_output_channel"),
        slow=False,
    ),
    Mutation(
        "the warmup is not subtracted",
        "training/optim/schedules.py",
        "body = cls()(config, end - config.warmup)",
        "body = cls()(config, end)",
        SCHEDULES,
        slow=False,
    ),
    Mutation(
        "a schedule ignores its own length",
        "training/optim/schedules.py",
        '(section.get("steps") or steps) if cls',
        "steps if cls",
        SCHEDULES,
    ),
    Mutation(
        "a cosine ends at 0",
        "training/optim/schedules.py",
        "config.end + (config.peak - config.end) * cosine(step)",
        "config.peak * cosine(step)",
        SCHEDULES,
    ),
    Mutation(
        "the EMA decay has no cap",
        "training/step.py",
        "jnp.minimum(self.ema, (1.0 + state.step) / (10.0 + state.step))",
        "(1.0 + state.step) / (10.0 + state.step)",
        ("tests/test_optimizers.py", "-k", "moving_average"),
        slow=False,
    ),
    Mutation(
        "arrays share the draws of their rounding",
        "training/optim/moments.py",
        " ^ jnp.uint32(index)",
        "",
        ("tests/test_optimizers.py", "-k", "on_its_own"),
        slow=False,
    ),
    # Invariants of a run and of a resumed run.
    Mutation(
        "the metric window is never reset",
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
        "rows after the restored step are kept",
        "training/metrics_log.py",
        ' if row["step"] <= step',
        "",
        ROWS,
    ),
    Mutation(
        "a damaged row ends the resume",
        "training/metrics_log.py",
        "except (KeyError, TypeError, ValueError):\n            damaged.append(number)",
        "except KeyError:\n            damaged.append(number)",
        ROWS,
    ),
    Mutation(
        "a resumed run starts with the first batch",
        "data/pipeline.py",
        "return self._iterate(split, batch_function, start_step, MAX_STEP, self.workers)",
        "return self._iterate(split, batch_function, 0, MAX_STEP, self.workers)",
        ("tests/test_pipeline.py",),
    ),
    Mutation(
        "a resumed run resets the moments",
        "training/checkpoint.py",
        "        return state\n\n    def _damaged",
        "        import dataclasses\n"
        "        zeros = jax.tree.map(jax.numpy.zeros_like, state.optimizer)\n"
        "        return dataclasses.replace(state, optimizer=zeros)\n\n    def _damaged",
        ("tests/test_resume.py", "-k", "again_and_again"),
    ),
    Mutation(
        "a restore clears the metric window",
        "training/checkpoint.py",
        "        return state\n\n    def _damaged",
        "        import dataclasses\n"
        "        window = jax.tree.map(jax.numpy.zeros_like, state.window)\n"
        "        return dataclasses.replace(state, window=window)\n\n    def _damaged",
        ("tests/test_resume.py", "-k", "again_and_again"),
    ),
    # Data that a run owns.
    Mutation(
        "checksums are not verified",
        "training/checkpoint.py",
        "if saved != found:",
        "if False:",
        ("tests/test_damaged_checkpoints.py", "-k", "passed_over and (bit or older)"),
    ),
    Mutation(
        "a checksum ignores the order of the elements",
        "training/checksums.py",
        "words = words ^ (index * one(0x9E3779B1) + one(1))",
        "words = words ^ (index * one(0) + one(1))",
        ("tests/test_damaged_checkpoints.py", "-k", "checksum"),
        slow=False,
    ),
    Mutation(
        "a difference in classes is ignored",
        "datasets/recorded.py",
        'if old["classes"] != new["classes"]:',
        "if False:",
        ("tests/test_owned_run.py", "-k", "each_difference"),
    ),
    Mutation(
        "class indices of other data are not translated",
        "datasets/recorded.py",
        "targets[name] = indices[targets[name]]",
        "pass",
        ("tests/test_owned_run.py", "-k", "classes_and_statistics"),
        slow=False,
    ),
    Mutation(
        "TensorBoard keeps repeated steps",
        "training/tensorboard.py",
        "self._write(step=first_step, session_log",
        "self._write(step=first_step + 10, session_log",
        ("tests/test_metrics_log.py", "-k", "discards"),
    ),
]


MUTATIONS = [*LISTED, *FORMULAS, *ROOMS]


@pytest.fixture(scope="module")
def verdicts(request, tmp_path_factory) -> dict[str, str]:
    """`{name: verdict}` of the mutations that this session runs, all judged by one process."""
    names, results = (tmp_path_factory.mktemp("mutations") / name for name in ("names", "results"))
    chosen = [item.callspec.params["mutation"] for item in request.session.items if item.originalname == NOTICED]
    names.write_text("\n".join(mutation.name for mutation in chosen))
    # The tests themselves are part of this suite, so it shows whether they pass on the unchanged package.
    command = [sys.executable, str(ROOT / "tests" / "mutate.py"), "--passing"]
    command += [f"--names={names}", f"--results={results}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert results.exists(), done.stdout + done.stderr
    return {row["name"]: row["verdict"] for row in map(json.loads, results.read_text().splitlines())}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_text_of_each_mutation_occurs_once(mutation):
    text = (ROOT / "mmjax" / mutation.file).read_text()
    assert text.count(mutation.before) == 1


def test_each_mutation_has_a_name_of_its_own():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def marked(mutation: Mutation):
    return pytest.param(mutation, id=mutation.name, marks=[pytest.mark.slow] if mutation.slow else [])


NOTICED = "test_the_tests_notice"


@pytest.mark.parametrize("mutation", [marked(mutation) for mutation in MUTATIONS])
def test_the_tests_notice(mutation, verdicts):
    assert verdicts[mutation.name] == ("survived" if mutation.reason else "caught")


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [((0, 1), "caught"), ((0, 0), "survived"), ((1, 1), "not tested"), ((5, 5), "not tested"), ((0, 2), "not tested")],
)
def test_a_mutation_is_caught_where_its_tests_pass_without_it_and_fail_with_it(statuses, expected):
    assert verdict(*statuses) == expected

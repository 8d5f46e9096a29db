"""Mutations of formulas in all packages, each with the few tests that must detect it."""

from __future__ import annotations

from tests.mutate import Mutation


def layers(name: str) -> tuple[str, ...]:
    return ("tests/test_formulas_layers.py", "-k", name)


def data(name: str) -> tuple[str, ...]:
    return ("tests/test_formulas_data.py", "-k", name)


def attention(name: str) -> tuple[str, ...]:
    return ("tests/test_attention.py", "-k", f"every_kernel and packed and float32 and {name}")


FORMULAS = [
    # Layers.
    Mutation(
        "a block has no residual connection",
        "layers/block.py",
        "values=tokens.values + branch",
        "values=branch",
        layers("formula_in_float64"),
    ),
    Mutation(
        "the MLP of a block reads unnormalised values",
        "layers/block.py",
        "self.mlp(self.mlp_norm(tokens.values))",
        "self.mlp(tokens.values)",
        layers("formula_in_float64"),
    ),
    Mutation(
        "the branches of a block share their dropout",
        "layers/block.py",
        "dropout(branch, self.dropout, token_rng.fold_in(name))",
        "dropout(branch, self.dropout, token_rng)",
        layers("both_branches"),
    ),
    Mutation(
        "an MLP uses ReLU instead of GELU",
        "layers/mlp.py",
        "jax.nn.gelu(hidden)",
        "jax.nn.relu(hidden)",
        layers("formula_in_float64"),
    ),
    Mutation(
        "attention pooling has no residual connection",
        "layers/pooling.py",
        "pooled = pooled + self.mlp",
        "pooled = self.mlp",
        layers("formula_in_float64"),
    ),
    Mutation(
        "draws ignore the step",
        "layers/randomness.py",
        "hash_bits(state ^ step.astype(jnp.uint32))",
        "hash_bits(state)",
        layers("draws"),
    ),
    Mutation(
        "draws of two examples are permutations of each other",
        "layers/randomness.py",
        "return hash_bits(hash_bits(index[None] + seeds) ^ seeds)",
        "return hash_bits(hash_bits(index[None] ^ (seeds & 1)))",
        layers("draws"),
    ),
    Mutation(
        "initial kernels are twice as large in variance",
        "layers/linear.py",
        "jax.nn.initializers.lecun_normal()",
        "jax.nn.initializers.he_normal()",
        layers("variance"),
    ),
    Mutation(
        "elements of an array share the rounding",
        "training/optim/moments.py",
        "hash_bits(hash_bits(flat_index(x.shape) ^ seed) + seed)",
        "hash_bits(hash_bits((flat_index(x.shape) & 1) ^ seed) + seed)",
        layers("rounding"),
    ),
    Mutation(
        "updates share the rounding",
        "training/optim/moments.py",
        "hash_bits(count.astype(jnp.uint32))",
        "hash_bits(jnp.uint32(0))",
        layers("rounding"),
    ),
    # Kernels.
    Mutation(
        "logits are not scaled",
        "layers/attention/kernels.py",
        "masked_softmax(logits * query.shape[-1] ** -0.5, visible)",
        "masked_softmax(logits, visible)",
        attention("xla"),
    ),
    Mutation(
        "cuDNN gets queries without keys",
        "layers/attention/kernels.py",
        "mask = visible | ~visible.any(axis=-1, keepdims=True)",
        "mask = visible",
        attention("cudnn"),
        slow=False,
    ),
    Mutation(
        "splash attention does not zero queries without keys",
        "layers/attention/kernels.py",
        "return _zero_unmatched(mixed, query_segments[:, :queries], padded_segments[:, :keys])",
        "return mixed",
        attention("splash"),
    ),
    Mutation(
        "the short kernel forgets a scale in its gradient",
        "layers/attention/short.py",
        "softmax_vjp(weights, _matmul(dy, v, (1, 1))) * scale",
        "softmax_vjp(weights, _matmul(dy, v, (1, 1)))",
        attention("short"),
    ),
    Mutation(
        "the gradient of a softmax forgets its mean",
        "layers/attention/softmax.py",
        "return weights * (cotangent - mean)",
        "return weights * cotangent",
        attention("xla"),
    ),
    # Batches.
    Mutation(
        "augmentation ignores the row",
        "data/batching.py",
        "rngs(_AUGMENT_KEY, position,",
        "rngs(_AUGMENT_KEY, 0,",
        data("augmentation_draws"),
        slow=False,
    ),
    Mutation(
        "two augmentations of one kind share their draws",
        "data/batching.py",
        'f"{name}/{index}"',
        "name",
        data("augmentation_draws"),
    ),
    Mutation(
        "modality dropout ignores the row",
        "data/batching.py",
        "rngs(_DROPOUT_KEY, position)",
        "rngs(_DROPOUT_KEY, 0)",
        data("modality_dropout"),
    ),
    Mutation(
        "draws of batches ignore the seed",
        "data/batching.py",
        'self._state["state"]["key"][:] = self._seed, key',
        'self._state["state"]["key"][:] = 0, key',
        data("draws_anew"),
    ),
    Mutation(
        "ids repeat in each epoch",
        "data/batching.py",
        "ids = indices.astype(np.int64) + size * (np.asarray(epochs, np.int64) % (MAX_STEP // size))",
        "ids = indices.astype(np.int64)",
        data("targets_and_ids"),
    ),
    Mutation(
        "an example may lose all inputs",
        "data/dataset.py",
        "if present and drop == set(present):",
        "if present and drop > set(present):",
        data("dropped or modality_dropout"),
    ),
    Mutation(
        "the kept input is always the first",
        "data/dataset.py",
        "sorted(present)[int(uniforms[-1] * len(present))]",
        "sorted(present)[0]",
        data("one_that_is_there"),
    ),
    Mutation(
        "evaluation augments",
        "data/pipeline.py",
        "sampler, batch_size, rows, {}, {}), 0, steps, workers)",
        "sampler, batch_size, rows, {}, self.augment), 0, steps, workers)",
        data("evaluation"),
    ),
    # Sampling.
    Mutation(
        "a sampling temperature sharpens",
        "data/sampling.py",
        "1.0 / config.temperature",
        "config.temperature",
        data("shares"),
    ),
    Mutation(
        "repetitions ignore the size of a group",
        "data/sampling.py",
        "config.epochs.get(group, 1.0) * size",
        "config.epochs.get(group, 1.0)",
        data("shares"),
    ),
    Mutation(
        "a lower bound is exclusive",
        "data/sampling.py",
        "(values >= low)",
        "(values > low)",
        data("filters"),
    ),
    # Preparation.
    Mutation(
        "the standard deviation replaces the variance",
        "prepare/statistics.py",
        "values.var()",
        "values.std()",
        data("statistics"),
    ),
    Mutation(
        "splits have equal shares",
        "prepare/splits.py",
        "fractions = np.asarray(list(shares.values())) / sum(shares.values())",
        "fractions = np.ones(len(shares)) / len(shares)",
        data("splits_have"),
    ),
    Mutation(
        "splits are not balanced by label",
        "prepare/splits.py",
        "            label_deficits[label][part] -= count\n",
        "            pass\n",
        data("splits_have"),
    ),
    Mutation(
        "grey quantiles see one channel",
        "prepare/pixels.py",
        "block[..., 0].astype(np.intp) + block[..., 1] + block[..., 2]",
        "3 * block[..., 0].astype(np.intp)",
        ("tests/test_pixels.py", "-k", "statistics"),
    ),
    Mutation(
        "the standard deviation of pixels is their root mean square",
        "prepare/pixels.py",
        "np.square(levels - mean)",
        "np.square(levels)",
        ("tests/test_pixels.py", "-k", "statistics"),
    ),
    Mutation(
        "a language is unwanted even if a wanted one is as likely",
        "prepare/languages.py",
        "probability < _MIN_RATIO * wanted_probability",
        "probability < 0 * wanted_probability",
        ("tests/test_prepare.py", "-k", "languages_are_detected"),
    ),
    # Modalities.
    Mutation(
        "noise is given in decibels of amplitude",
        "modalities/augmentation/noise.py",
        "10 ** (-ratio / 20)",
        "10 ** (-ratio / 10)",
        ("tests/test_augmentation.py", "-k", "signal_to_noise"),
    ),
    Mutation(
        "a flip inverts its probability",
        "modalities/augmentation/flip.py",
        "horizontal < self.config.horizontal",
        "horizontal > self.config.horizontal",
        ("tests/test_augmentation.py", "-k", "flip"),
    ),
    Mutation(
        "a truncated text has no end token",
        "modalities/text.py",
        "[*tokens[: max_tokens - 1], self.end]",
        "[*tokens, self.end][:max_tokens]",
        ("tests/test_modalities.py", "-k", "ext"),
    ),
    # Tasks and reports.
    Mutation(
        "R2 is not centred on the mean",
        "tasks/regression.py",
        "values_squared - values * values / weight",
        "values_squared",
        ("tests/test_regression.py",),
    ),
    Mutation(
        "a verdict ignores the sampling error",
        "reporting/records.py",
        "mean > ceiling + 2 * error",
        "mean > ceiling",
        ("tests/test_reproduce.py", "-k", "verdict"),
    ),
    # Planning and sharding.
    Mutation(
        "the backward pass costs as much as the forward pass",
        "planning/flops.py",
        "TRAINING_PASSES = 3",
        "TRAINING_PASSES = 2",
        ("tests/test_flops.py",),
    ),
    Mutation(
        "an instruction takes the smaller of its two bounds",
        "planning/roofline.py",
        "return max(instruction_flops(",
        "return min(instruction_flops(",
        ("tests/test_hlo.py", "-k", "no_cycles"),
    ),
    Mutation(
        "the backward pass of attention has four products",
        "planning/roofline.py",
        "matmuls = 5 if",
        "matmuls = 4 if",
        ("tests/test_gpu.py", "-k", "has_flops"),
    ),
    Mutation(
        "a gather moves one shard",
        "planning/collectives.py",
        '(groups.shape[1] if kind == "all-gather" else 1)',
        "1",
        ("tests/test_collectives.py",),
    ),
    Mutation(
        "dimensions that no axis divides are split",
        "sharding/rules.py",
        "return axes if size % axis_size(mesh, axes) == 0 else ()",
        "return axes",
        ("tests/test_formulas_layers.py", "-k", "divide"),
    ),
    # Predictions.
    Mutation(
        "the similarity of a pair is a sum instead of a product",
        "tasks/contrastive.py",
        "np.sum(first * second, axis=-1)",
        "np.sum(first + second, axis=-1)",
        ("tests/test_contrastive.py", "-k", "cosine and softmax"),
    ),
    Mutation(
        "predict does not reduce a file as its column was",
        "prepare/reduction.py",
        "self._kind.stored(self._kind.reduced(raw), self._summary)",
        "self._kind.stored(raw, self._summary)",
        ("tests/test_reduce.py", "-k", "predict_reads and audio"),
    ),
    # The ledger.
    Mutation(
        "the ledger loses nothing of a killed process",
        "training/ledger.py",
        "lost = sum(self._before.values()) - sum(kept.values())",
        "lost = 0.0",
        ("tests/test_ledger.py", "-k", "lost"),
    ),
    Mutation(
        "the ledger counts a trace within a trace twice",
        "training/ledger.py",
        "max(0.0, duration_secs - inner)",
        "max(0.0, duration_secs)",
        ("tests/test_ledger.py", "-k", "moved_once"),
    ),
    # Stalls.
    Mutation(
        "a pause of all processes makes the last one late",
        "processes/heartbeats.py",
        'heartbeat["step"] == max_step or self.last_step',
        "self.last_step",
        ("tests/test_watchdog.py", "-k", "blames_none"),
    ),
    Mutation(
        "a pause of this process counts",
        "processes/stall.py",
        "min(now - self._last, 3 * self.period)",
        "now - self._last",
        ("tests/test_watchdog.py", "-k", "pause_of_the_process"),
    ),
    Mutation(
        "progress within a phase does not count",
        "processes/stall.py",
        "self._seen, self._since = progress, now",
        "self._seen = progress",
        ("tests/test_watchdog.py", "-k", "without_progress"),
    ),
]

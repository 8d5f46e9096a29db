"""Mutations of single lines in all packages: signs, bounds, axes, scales and defaults."""

from __future__ import annotations

from tests.mutate import Mutation


def tests(name: str, expression: str) -> tuple[str, ...]:
    return f"tests/test_{name}.py", "-k", expression


ROOMS = [
    # Layers.
    Mutation(
        "the Hann window is symmetric",
        "layers/spectrogram.py",
        "np.cos(2 * np.pi * time / window)",
        "np.cos(2 * np.pi * time / (window - 1))",
        tests("spectrogram", "fourier_transform"),
    ),
    Mutation(
        "the last token is the mirror image of the first",
        "layers/pooling.py",
        "tokens.members[:, :, ::-1].argmax(axis=2)",
        "tokens.members.argmax(axis=2)",
        tests("layers", "first_and_last"),
    ),
    Mutation(
        "the gradient of a layer norm forgets the mean",
        "layers/norms.py",
        "dx = dz - dz.mean(axis=-1, keepdims=True) - y",
        "dx = dz - y",
        tests("layers", "derivative_of_layer_norm"),
    ),
    Mutation(
        "the variance in bfloat16 is about zero",
        "layers/norms.py",
        "jnp.square(y).mean(axis=-1) - jnp.square(mean)",
        "jnp.square(y).mean(axis=-1)",
        tests("layers", "as_good_as"),
    ),
    # Encoders and fusions.
    Mutation(
        "rows and columns of patches are swapped",
        "encoders/vit.py",
        'indexing="ij"',
        'indexing="xy"',
        tests("formulas_modules", "of_an_image"),
    ),
    Mutation(
        "a tubelet needs all of its frames",
        "encoders/video_transformer.py",
        "self.tubelet).any(axis=-1)",
        "self.tubelet).all(axis=-1)",
        tests("formulas_modules", "of_a_clip"),
    ),
    Mutation(
        "repeated points are patches",
        "encoders/point_transformer.py",
        "sampled_distances > 0",
        "sampled_distances >= 0",
        tests("formulas_modules", "equal_points"),
    ),
    Mutation(
        "a patch of a series is valid by its first steps",
        "encoders/series_transformer.py",
        "steps[:, :1] + (self.patch - self.stride)",
        "steps[:, :1] + self.stride",
        tests("formulas_modules", "of_a_series"),
    ),
    Mutation(
        "columns of a table share their categories",
        "encoders/table_transformer.py",
        " + np.cumsum(sizes) - sizes",
        "",
        tests("formulas_modules", "of_a_table"),
    ),
    Mutation(
        "all residual blocks have the rate of the last",
        "encoders/resnet.py",
        "config.drop_path * index / last",
        "config.drop_path",
        tests("formulas_modules", "grows_from_0"),
    ),
    Mutation(
        "absent inputs take a share of the gates",
        "fusion/gated_average.py",
        "jnp.where(present, logits, MASKED_LOGIT)",
        "logits",
        tests("formulas_modules", "gated_average"),
    ),
    Mutation(
        "latents read the tokens before their update",
        "fusion/cross_attention.py",
        "self.readout(latents, updated",
        "self.readout(latents, tokens",
        tests("formulas_modules", "round_of_cross"),
    ),
    # Tasks.
    Mutation(
        "the Huber loss has a jump",
        "tasks/regression.py",
        "delta * (magnitude - 0.5 * delta)",
        "delta * (magnitude - delta)",
        tests("regression", "standardised_error"),
    ),
    Mutation(
        "predictions stay centred",
        "tasks/regression.py",
        "float(value) * self.std + self.mean",
        "float(value) * self.std",
        tests("regression", "in_the_unit"),
    ),
    Mutation(
        "the chance level of the sigmoid loss is one pair's",
        "tasks/contrastive.py",
        "return -batch_size * (rate",
        "return -(rate",
        tests("formulas", "by_chance"),
    ),
    Mutation(
        "ties count for the model",
        "tasks/losses/pairs.py",
        "negatives >= best[None, :]",
        "negatives > best[None, :]",
        tests("contrastive", "one_place"),
    ),
    # Batches and sampling.
    Mutation(
        "an upper bound is exclusive",
        "data/sampling.py",
        "(values <= (np.inf",
        "(values < (np.inf",
        tests("formulas_data", "bounds_of_a_filter"),
    ),
    Mutation(
        "quotas are rounded down",
        "data/samplers.py",
        "np.full(len(groups), 0.5)",
        "np.full(len(groups), 0.0)",
        tests("order", "proportions_are"),
    ),
    Mutation(
        "examples are packed by their smallest share",
        "data/packed_sampler.py",
        "(needs / budgets).max(axis=2)",
        "(needs / budgets).min(axis=2)",
        tests("packing", "first_fit"),
    ),
    Mutation(
        "rows of a window keep the order of their lengths",
        "data/packed_sampler.py",
        "rng.permutation(rows.shape[1])",
        "np.arange(rows.shape[1])",
        tests("packing", "random_order"),
    ),
    Mutation(
        "workers take all of the memory",
        "data/workers.py",
        "> available / 2",
        "> available",
        tests("workers", "half_of_the_memory"),
    ),
    # Modalities.
    Mutation(
        "gains are decibels of power",
        "modalities/augmentation/equalise.py",
        "10 ** (decibels / 20)",
        "10 ** (decibels / 10)",
        tests("augmentation", "equaliser"),
    ),
    Mutation(
        "degrees are radians",
        "modalities/augmentation/affine.py",
        "np.deg2rad(rotate * config.rotate)",
        "rotate * config.rotate",
        tests("augmentation", "affine"),
    ),
    Mutation(
        "a warped series ends too late",
        "modalities/augmentation/time_warp.py",
        "* (count - 1) / step_speeds.sum()",
        "* count / step_speeds.sum()",
        tests("series", "warp"),
    ),
    Mutation(
        "samples are interpolated backwards",
        "modalities/augmentation/speed.py",
        "samples[lower] * (1 - fraction) + samples[lower + 1] * fraction",
        "samples[lower] * fraction + samples[lower + 1] * (1 - fraction)",
        tests("augmentation", "neighbouring"),
    ),
    Mutation(
        "loudness is normalised to 1",
        "modalities/audio.py",
        "np.float32(0.1 / np.sqrt",
        "np.float32(1.0 / np.sqrt",
        tests("modalities", "loudness"),
    ),
    # Preparation.
    Mutation(
        "the median is the mean",
        "prepare/statistics.py",
        "np.median(values)",
        "np.mean(values)",
        tests("formulas_data", "statistics"),
    ),
    Mutation(
        "leave-one-out residuals are not scaled",
        "prepare/leave_one_out.py",
        "(targets[train_mask] - mean)) / (1 - leverage)",
        "(targets[train_mask] - mean))",
        tests("label_errors", "leave_one_out"),
    ),
    # Training.
    Mutation(
        "an exponential schedule ends at a tenth",
        "training/optim/schedules.py",
        "ratio = 0.01 if",
        "ratio = 0.1 if",
        tests("schedules", "exponential_schedule"),
    ),
    Mutation(
        "zero weights are clipped for ever",
        "training/optim/adaptive_clip.py",
        "jnp.maximum(_unit_norms(weights), MIN_NORM)",
        "_unit_norms(weights)",
        tests("optimizers", "weights_of_0"),
    ),
    Mutation(
        "the partner may dominate a mixture",
        "training/loss_transforms/mixing.py",
        "jnp.maximum(share, 1.0 - share)",
        "share",
        tests("mixing", "folded"),
    ),
    Mutation(
        "clean and adversarial loss are swapped",
        "training/loss_transforms/adversarial.py",
        "(1 - self.config.fraction) * clean + self.config.fraction * adversarial",
        "self.config.fraction * clean + (1 - self.config.fraction) * adversarial",
        tests("formulas", "its_fraction"),
    ),
    Mutation(
        "a run waits one evaluation too long",
        "training/hooks/early_stopping.py",
        "self.waited >= self.config.patience",
        "self.waited > self.config.patience",
        tests("step", "stopped_early"),
    ),
    Mutation(
        "the logged rate is that of the next step",
        "training/hooks/log.py",
        "int(loop.state.step) - 1",
        "int(loop.state.step)",
        tests("step", "rate_of_its_last"),
    ),
    Mutation(
        "the best checkpoint is the worst",
        "training/checkpoint.py",
        'best = max if self.config.mode == "max" else min',
        'best = min if self.config.mode == "max" else max',
        tests("skipped_steps", "never_best"),
    ),
    # Evaluation, plans, sharding and reports.
    Mutation(
        "an absent input has an embedding",
        "evaluation/pair_embedder.py",
        "side[: len(chunk)], np.nan)",
        "side[: len(chunk)], 0.0)",
        tests("misaligned", "embeds_as"),
    ),
    Mutation(
        "a sum over slices crosses once",
        "planning/collectives.py",
        '(slices - 1) / slices * (2 if kind == "all-reduce" else 1)',
        "(slices - 1) / slices",
        tests("collectives", "over_slices"),
    ),
    Mutation(
        "a product counts its multiplications only",
        "planning/roofline.py",
        "return 2 * result *",
        "return result *",
        tests("hlo", "no_cycles"),
    ),
    Mutation(
        "the smallest dimension is split",
        "sharding/parameters.py",
        "max(free, key=lambda i: shape[i])",
        "min(free, key=lambda i: shape[i])",
        tests("mesh", "whose_own_dimension"),
    ),
    Mutation(
        "the deviation is that of a population",
        "reporting/records.py",
        "statistics.stdev(values)",
        "statistics.pstdev(values)",
        tests("reproduce", "spread"),
    ),
]

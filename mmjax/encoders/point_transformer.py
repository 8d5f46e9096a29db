"""Transformer over patches of point clouds (Pang et al., Point-MAE, 2022)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.config import Count
from mmjax.layers import Linear, Precision, Randomness, Transformer, TransformerConfig
from mmjax.tokens import Input, InputSpec, Tokens


class PointTransformer(nnx.Module):
    """Transformer over patches of points [B, points, 3 + features]; tokens have positions (x, y, z) of patch centres.

    Farthest point sampling selects the patch centres, and each patch consists of the points nearest to its centre. A
    small PointNet (Qi et al., 2017) embeds the points relative to the centre and max-pools them. The output does not
    depend on the order of the points.
    """

    example: ClassVar[InputSpec] = InputSpec((24, 4), "float32", mask_rank=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Options of `PointTransformer`.

        Attributes:
          groups: maximum number of patches; a cloud with fewer distinct points has one patch per distinct point.
          neighbours: points per patch; patches overlap.
        """

        groups: Count = 64
        neighbours: Count = 32

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        points, columns = spec.shape
        for name in ("groups", "neighbours"):
            if (count := getattr(config, name)) > points:
                raise ValueError(f"{name} {count} exceeds the {points} points; choose fewer")
        self.groups, self.neighbours = config.groups, config.neighbours
        self.dtype, self.width = precision.dtype, config.width
        inner = config.width // 2
        self.first = Linear(columns, inner, rngs=rngs)
        self.second = Linear(inner, inner, rngs=rngs)
        self.third = Linear(2 * inner, config.width, rngs=rngs)
        self.fourth = Linear(config.width, config.width, rngs=rngs)
        self.position_in = Linear(3, inner, rngs=rngs)
        self.position_out = Linear(inner, config.width, rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, groups, width]."""
        xyz = inputs.values[..., :3].astype(jnp.float32)
        samples, mask = farthest_point_sampling(xyz, inputs.mask, self.groups)
        centres = jnp.take_along_axis(xyz, samples[..., None], axis=1)
        neighbours = nearest_neighbours(centres, xyz, inputs.mask, self.neighbours)
        batch = jnp.arange(len(xyz))[:, None, None]
        patches, valid = inputs.values[batch, neighbours], inputs.mask[batch, neighbours] & mask[..., None]
        relative = patches.at[..., :3].add(-centres[:, :, None].astype(patches.dtype))
        # Zero the invalid points, which now hold minus the centre.
        values = self._embed(jnp.where(valid[..., None], relative, 0).astype(self.dtype), valid)
        positions = self.position_out(jax.nn.gelu(self.position_in(centres.astype(self.dtype))))
        return self.trunk(Tokens.make(values + positions, mask, centres), rng)

    def _embed(self, patches: Float[Array, "b g k columns"], valid: Bool[Array, "b g k"]) -> Float[Array, "b g width"]:
        """Applies a two-stage PointNet per patch; the second stage also gets the max-pooled output of the first."""
        points = self.second(jax.nn.gelu(self.first(patches)))
        pooled = jnp.broadcast_to(_max_pool(points, valid)[:, :, None], points.shape)
        points = self.fourth(jax.nn.gelu(self.third(jnp.concatenate([pooled, points], axis=-1))))
        return _max_pool(points, valid)


def farthest_point_sampling(
    xyz: Float[Array, "b points 3"], mask: Bool[Array, "b points"], count: int
) -> tuple[Int[Array, "b count"], Bool[Array, "b count"]]:
    """Farthest point sampling (Eldar et al., 1997), starting at the point farthest from the mean.

    Returns:
      Indices of the sampled points, and a mask that is False for samples that repeat earlier coordinates, which happens
      if a cloud has fewer than `count` distinct points. Their indices are arbitrary.
    """
    weights = mask[..., None].astype(jnp.float32)
    mean = (xyz * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)

    def squared_distance(point: Float[Array, "b 3"]) -> Float[Array, "b points"]:
        return jnp.square(xyz - point[:, None]).sum(axis=-1)

    def sample(distances: Float[Array, "b points"], _):
        index = distances.argmax(axis=1)
        distance = jnp.take_along_axis(distances, index[:, None], axis=1)[:, 0]
        point = jnp.take_along_axis(xyz, index[:, None, None], axis=1)[:, 0]
        return jnp.minimum(distances, squared_distance(point)), (index, distance)

    first = jnp.where(mask, squared_distance(mean), -1.0).argmax(axis=1)
    start = jnp.take_along_axis(xyz, first[:, None, None], axis=1)[:, 0]
    distances = jnp.where(mask, squared_distance(start), -1.0)
    _, (indices, sampled_distances) = jax.lax.scan(sample, distances, length=count - 1)
    valid = jnp.concatenate([mask.any(axis=1)[None], sampled_distances > 0])
    return jnp.concatenate([first[None], indices]).T, valid.T


def nearest_neighbours(
    centres: Float[Array, "b groups 3"], xyz: Float[Array, "b points 3"], mask: Bool[Array, "b points"], count: int
) -> Int[Array, "b groups count"]:
    """Indices of the `count` points nearest to each centre, masked points last."""
    squared = jnp.square(centres[:, :, None] - xyz[:, None]).sum(axis=-1)
    return jax.lax.top_k(-jnp.where(mask[:, None], squared, jnp.inf), count)[1]


def _max_pool(points: Float[Array, "b g k width"], valid: Bool[Array, "b g k"]) -> Float[Array, "b g width"]:
    """Maximum over the valid points of each patch; 0 for patches without any."""
    lowest = jnp.asarray(jnp.finfo(points.dtype).min, points.dtype)
    largest = jnp.where(valid[..., None], points, lowest).max(axis=2)
    return jnp.where(valid.any(axis=2)[..., None], largest, 0)

"""A Transformer over patches of a point cloud (Pang et al., Point-MAE, 2022)."""

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
    """Points [B, points, 3 + features] with their mask, as tokens with positions (x, y, z of the middle of a patch).

    Middles are points as far from one another as can be; a patch is the points that are nearest to one, wherever they
    stand in the array: their order changes nothing. Points relative to the middle go through a small PointNet (Qi et
    al., 2017), whose largest values over the patch are the token.
    """

    example: ClassVar[InputSpec] = InputSpec((24, 4), "float32", mask_rank=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes.

        Attributes:
          groups: number of patches; a cloud with fewer different places has as many as these.
          neighbours: points in a patch; patches overlap.
        """

        groups: Count = 64
        neighbours: Count = 32

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        points, columns = spec.shape
        for name in ("groups", "neighbours"):
            if (number := getattr(config, name)) > points:
                raise ValueError(f"{name} {number} exceeds the {points} points; choose fewer")
        self.groups, self.neighbours = config.groups, config.neighbours
        self.dtype, self.width = precision.dtype, config.width
        inner = config.width // 2
        self.first = Linear(columns, inner, rngs=rngs)
        self.second = Linear(inner, inner, rngs=rngs)
        self.third = Linear(2 * inner, config.width, rngs=rngs)
        self.fourth = Linear(config.width, config.width, rngs=rngs)
        self.place_in = Linear(3, inner, rngs=rngs)
        self.place_out = Linear(inner, config.width, rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        places = input.values[..., :3].astype(jnp.float32)
        chosen, real = farthest(places, input.mask, self.groups)
        middles = jnp.take_along_axis(places, chosen[..., None], axis=1)
        near = nearest(middles, places, input.mask, self.neighbours)
        rows = jnp.arange(len(places))[:, None, None]
        patches, there = input.values[rows, near], input.mask[rows, near] & real[..., None]
        relative = patches.at[..., :3].add(-middles[:, :, None].astype(patches.dtype))
        # Where nothing is stand zeros, not what is left of subtracting a middle.
        values = self._patch(jnp.where(there[..., None], relative, 0).astype(self.dtype), there)
        where = self.place_out(jax.nn.gelu(self.place_in(middles.astype(self.dtype))))
        return self.trunk(Tokens.make(values + where, real, middles), rng)

    def _patch(self, points: Float[Array, "b groups near columns"], there: Bool[Array, "b groups near"]) -> jax.Array:
        """[B, groups, width]: two rounds, of which the second knows what the first made of the whole patch."""
        points = self.second(jax.nn.gelu(self.first(points)))
        whole = jnp.broadcast_to(_largest(points, there)[:, :, None], points.shape)
        points = self.fourth(jax.nn.gelu(self.third(jnp.concatenate([whole, points], axis=-1))))
        return _largest(points, there)


def farthest(
    places: Float[Array, "b points 3"], mask: Bool[Array, "b points"], count: int
) -> tuple[Int[Array, "b count"], Bool[Array, "b count"]]:
    """Real points, each the farthest from all that were chosen before, the first from the mean of all.

    Returns:
      (their numbers, whether each is a place that was not chosen before); numbers of others say nothing.
    """
    weights = mask[..., None].astype(jnp.float32)
    mean = (places * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)

    def squared(place: jax.Array) -> jax.Array:
        return jnp.square(places - place[:, None]).sum(axis=-1)

    def choose(distances: jax.Array, _) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        number = distances.argmax(axis=1)
        reach = jnp.take_along_axis(distances, number[:, None], axis=1)[:, 0]
        place = jnp.take_along_axis(places, number[:, None, None], axis=1)[:, 0]
        return jnp.minimum(distances, squared(place)), (number, reach)

    first = jnp.where(mask, squared(mean), -1.0).argmax(axis=1)
    start = jnp.take_along_axis(places, first[:, None, None], axis=1)[:, 0]
    distances = jnp.where(mask, squared(start), -1.0)
    _, (numbers, reaches) = jax.lax.scan(choose, distances, length=count - 1)
    real = jnp.concatenate([mask.any(axis=1)[None], reaches > 0])
    return jnp.concatenate([first[None], numbers]).T, real.T


def nearest(
    middles: Float[Array, "b groups 3"], places: Float[Array, "b points 3"], mask: Bool[Array, "b points"], count: int
) -> Int[Array, "b groups count"]:
    """The numbers of the points nearest to each middle, real ones first."""
    squared = jnp.square(middles[:, :, None] - places[:, None]).sum(axis=-1)
    return jax.lax.top_k(-jnp.where(mask[:, None], squared, jnp.inf), count)[1]


def _largest(points: Float[Array, "b groups near width"], there: Bool[Array, "b groups near"]) -> jax.Array:
    """Over the points of each patch that are there, 0 where none is."""
    lowest = jnp.asarray(jnp.finfo(points.dtype).min, points.dtype)
    largest = jnp.where(there[..., None], points, lowest).max(axis=2)
    return jnp.where(there.any(axis=2)[..., None], largest, 0)

"""Losses and ranks over all pairs of a batch, B x B of them, of which a device holds no more than a block at a time.

The rows, one side of the pairs, stay where they are. The columns, the other side, go around in a ring and take along
what they add up, so that one pass serves both directions. The derivative goes around once more and computes the blocks
again. A derivative made by JAX would keep every visitor of the first pass: all features, on each device.

On a mesh with several axes devices form groups. All of a group hold the rows of the group, so that the columns of each
have to visit one device of every group only, and what a group has added up is added up once more in the end: on 16 x 16
devices 16 and 16 steps instead of 256, as in products of matrices that are split both ways (van de Geijn and Watts,
SUMMA, 1997).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.sharding import map_row_shards, num_chunks, ring_scan, row_axes

NEVER = -1e30
"""The logit of a pair that is not there."""

BLOCK = 2**22
"""So many logits does a device compute at once at most: 16 MiB."""

Axes = tuple[str, ...]
Side = dict[str, Any]
"""Arrays over the rows or the columns: "features" [b, width], "there" [b], "labels" [b], and what a pass adds."""


class Softmax:
    """Cross-entropy in both directions, for several positives their mean.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021); Khosla et al.,
    Supervised Contrastive Learning (2020).
    """

    @staticmethod
    def start(size: int) -> Side:
        """Sums of a row or a column before its first pair: each [size]."""
        zero = jnp.zeros(size, jnp.float32)
        return {"top": jnp.full(size, NEVER), "total": zero, "right": zero, "partners": zero}

    @staticmethod
    def merge(sums: Side, axes: Axes) -> Side:
        """The sums over all devices along mesh axes."""
        top = jax.lax.pmax(sums["top"], axes)
        sums = {**sums, "total": sums["total"] * jnp.exp(sums["top"] - top)}
        return {name: top if name == "top" else jax.lax.psum(each, axes) for name, each in sums.items()}

    @classmethod
    def gather(cls, logits, positive, there, rows: Side, columns: Side) -> tuple[Side, Side]:
        logits = jnp.where(there, logits, NEVER)
        return cls._gather(logits, positive, there, rows, 1), cls._gather(logits, positive, there, columns, 0)

    @staticmethod
    def _gather(logits, positive, there, sums: Side, axis: int) -> Side:
        top = jnp.maximum(sums["top"], logits.max(axis))
        weights = jnp.where(there, jnp.exp(logits - jnp.expand_dims(top, axis)), 0.0)
        return {
            "top": top,
            "total": sums["total"] * jnp.exp(sums["top"] - top) + weights.sum(axis),
            "right": sums["right"] + jnp.where(positive, logits, 0.0).sum(axis),
            "partners": sums["partners"] + positive.sum(axis, dtype=jnp.float32),
        }

    @classmethod
    def finish(cls, rows: Side, columns: Side) -> tuple[jax.Array, Side, Side]:
        """Losses of the rows, and what the derivative has to know of rows and columns."""
        (first, rows), (second, columns) = cls._finish(rows), cls._finish(columns)
        return 0.5 * (first + second), rows, columns

    @staticmethod
    def _finish(sums: Side) -> tuple[jax.Array, Side]:
        norm = sums["top"] + jnp.log(jnp.where(sums["total"] > 0, sums["total"], 1.0))
        share = jnp.where(sums["partners"] > 0, 1.0 / jnp.maximum(sums["partners"], 1.0), 0.0)
        return jnp.where(share > 0, norm - sums["right"] * share, 0.0), {"norm": norm, "share": share}

    @classmethod
    def slopes(cls, logits, positive, there, rows: Side, columns: Side) -> jax.Array:
        """The derivative of the sum of `pull` times losses with respect to the logits."""
        logits = jnp.where(there, logits, NEVER)
        return 0.5 * (cls._slopes(logits, positive, there, rows, 1) + cls._slopes(logits, positive, there, columns, 0))

    @staticmethod
    def _slopes(logits, positive, there, side: Side, axis: int) -> jax.Array:
        norm, share, pull = (jnp.expand_dims(side[name], axis) for name in ("norm", "share", "pull"))
        chosen = jnp.where(there & (share > 0), jnp.exp(logits - norm), 0.0)
        return pull * (chosen - jnp.where(positive, share, 0.0))


class Sigmoid:
    """Each pair by itself; the loss of an example is that of its row.

    Zhai et al., Sigmoid Loss for Language Image Pre-Training (2023).
    """

    @staticmethod
    def start(size: int) -> Side:
        return {"loss": jnp.zeros(size, jnp.float32)}

    @staticmethod
    def merge(sums: Side, axes: Axes) -> Side:
        return {"loss": jax.lax.psum(sums["loss"], axes)}

    @staticmethod
    def gather(logits, positive, there, rows: Side, columns: Side) -> tuple[Side, Side]:
        signed = jnp.where(positive, logits, -logits)
        return {"loss": rows["loss"] - jnp.where(there, jax.nn.log_sigmoid(signed), 0.0).sum(1)}, columns

    @staticmethod
    def finish(rows: Side, columns: Side) -> tuple[jax.Array, Side, Side]:
        return rows["loss"], {}, {}

    @staticmethod
    def slopes(logits, positive, there, rows: Side, columns: Side) -> jax.Array:
        sign = jnp.where(positive, 1.0, -1.0)
        return -rows["pull"][:, None] * jnp.where(there, sign * jax.nn.sigmoid(-sign * logits), 0.0)


LOSSES = {"softmax": Softmax, "sigmoid": Sigmoid}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_losses(
    kind: str,
    first: Float[Array, "batch width"],
    second: Float[Array, "batch width"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    there: Bool[Array, " batch"],
    labels: Int[Array, " batch"],
) -> Float[Array, " batch"]:
    """The loss of each example against all others of the batch, whose rows all devices of the mesh share.

    Args:
      kind: a name in `LOSSES`.
      first, second: features of length 1, float32.
      temperature, bias: the logit of a pair is temperature * cosine + bias.
      there: whether the example takes part; the others are neither positives nor negatives, and their loss is 0.
      labels: pairs whose labels are equal are positive.
    """
    return _forward(kind, first, second, temperature, bias, there, labels)[0]


def _block(rows: Side, columns: Side) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of all pairs [rows, columns]: their cosines, which are positive, and which are there at all."""
    cosines = jnp.einsum("iw,jw->ij", rows["features"], columns["features"], preferred_element_type=jnp.float32)
    there = rows["there"][:, None] & columns["there"][None, :]
    return cosines, there & (rows["labels"][:, None] == columns["labels"][None, :]), there


def _groups(axes: Axes) -> tuple[Axes, Axes]:
    """Splits the mesh axes of a batch into those that the ring leads over and those of a group, the fastest ones.

    The fewer steps the better: so many as there are groups, and so many as a group has devices. But a device holds the
    rows of a group, so that groups are not much larger than their number.
    """
    count = jax.lax.axis_size(axes)
    sizes = {cut: jax.lax.axis_size(axes[cut:]) for cut in range(len(axes), 0, -1)}
    few = [cut for cut, size in sizes.items() if size**2 <= 4 * count]
    cut = min(few, key=lambda cut: sizes[cut] + count // sizes[cut], default=len(axes))
    return axes[:cut], axes[cut:]


def _gathered(rows: Side, group: Axes) -> Side:
    """Those of all devices of a group, one after the other."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, group, tiled=True), rows)


def _own(sums: Any, group: Axes, size: int) -> Any:
    """Of arrays over the rows of a group, those of this device."""
    start = jax.lax.axis_index(group) * size
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), sums)


def _go_around(meet: Callable, carry: Any, rows: Side, columns: Side, axes: Axes) -> tuple[Any, Side]:
    beside, size = (side["there"].shape[0] for side in (rows, columns))
    return ring_scan(meet, carry, columns, axes, chunks=num_chunks(size, beside, BLOCK))


def _forward(kind, first, second, temperature, bias, there, labels):
    loss = LOSSES[kind]

    def local(axes, first, second, temperature, bias, there, labels):
        size, (around, group) = first.shape[0], _groups(axes)
        rows = _gathered({"features": first, "there": there, "labels": labels}, group)

        def meet(sums, visitor):
            cosines, positive, there = _block(rows, visitor)
            logits = temperature * cosines + bias
            sums, of_columns = loss.gather(logits, positive, there, sums, visitor["sums"])
            return sums, {**visitor, "sums": of_columns}

        columns = {"features": second, "there": there, "labels": labels, "sums": loss.start(size)}
        sums, columns = _go_around(meet, loss.start(len(rows["there"])), rows, columns, around)
        return loss.finish(_own(loss.merge(sums, group), group, size), columns["sums"])

    given = (first, second, temperature, bias, there, labels)
    losses, rows, columns = map_row_shards(local, row_axes(first.shape[0]), given)
    return losses, (*given, rows, columns)


def _backward(kind, saved, pull):
    loss = LOSSES[kind]

    def local(axes, first, second, temperature, bias, there, labels, rows, columns, pull):
        around, group = _groups(axes)
        rows = _gathered({"features": first, "there": there, "labels": labels, **rows, "pull": pull}, group)

        def meet(sums, visitor):
            cosines, positive, there = _block(rows, visitor)
            slopes = loss.slopes(temperature * cosines + bias, positive, there, rows, visitor)
            of_first, of_temperature, of_bias = sums
            of_first += temperature * slopes @ visitor["features"]
            of_second = visitor["of_second"] + temperature * slopes.T @ rows["features"]
            sums = of_first, of_temperature + (slopes * cosines).sum(), of_bias + slopes.sum()
            return sums, {**visitor, "of_second": of_second}

        columns = {"features": second, "there": there, "labels": labels, **columns, "pull": pull}
        columns["of_second"] = jnp.zeros_like(second)
        zero = jnp.zeros(())
        sums, columns = _go_around(meet, (jnp.zeros_like(rows["features"]), zero, zero), rows, columns, around)
        of_first, *of_scalars = sums
        of_first = jax.lax.psum_scatter(of_first, group, tiled=True)
        return of_first, columns["of_second"], *(jax.lax.psum(x, axes) for x in of_scalars)

    gradients = map_row_shards(local, row_axes(saved[0].shape[0]), (*saved, pull))
    return (*gradients, None, None)


pair_losses.defvjp(_forward, _backward)


def worse_than_others(
    first: Float[Array, "batch width"],
    second: Float[Array, "batch width"],
    there: Bool[Array, " batch"],
    labels: Int[Array, " batch"],
    *,
    only_own: bool = False,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """How many wrong partners are at least as near as the nearest right one, for each row and for each column.

    With `only_own`, which says that no two labels are equal, the right one needs no search.

    Ties count against the model: one that gives everything the same place finds nothing. The two numbers of an example
    that is not there are without meaning.
    """

    def local(axes, first, second, there, labels):
        size, (around, group) = first.shape[0], _groups(axes)
        rows = _gathered({"features": first, "there": there, "labels": labels}, group)

        def find(best, visitor):
            cosines, positive, _ = _block(rows, visitor)
            right = jnp.where(positive, cosines, NEVER)
            columns = jnp.maximum(visitor["best"], right.max(0))
            return jnp.maximum(best, right.max(1)), {**visitor, "best": columns}

        def count(worse, visitor):
            cosines, positive, there = _block(rows, visitor)
            wrong = jnp.where(there & ~positive, cosines, 2 * NEVER)
            columns = visitor["worse"] + (wrong >= visitor["best"][None, :]).sum(0, dtype=jnp.int32)
            return worse + (wrong >= best[:, None]).sum(1, dtype=jnp.int32), {**visitor, "worse": columns}

        def start(value, dtype):
            return jnp.full(len(rows["there"]), value, dtype), jnp.full(size, value, dtype)

        of_rows, of_columns = start(NEVER, jnp.float32)
        columns = {"features": second, "there": there, "labels": labels, "best": of_columns}
        best, columns = _go_around(find, of_rows, rows, columns, () if only_own else around)
        best = jax.lax.pmax(best, group)
        of_rows, of_columns = start(0, jnp.int32)
        worse, columns = _go_around(count, of_rows, rows, {**columns, "worse": of_columns}, around)
        return _own(jax.lax.psum(worse, group), group, size), columns["worse"]

    given = jax.lax.stop_gradient((first, second))
    return map_row_shards(local, row_axes(first.shape[0]), (*given, there, labels))

"""Contrastive losses and retrieval ranks over all B x B pairs of a batch, one block of logits in memory at a time.

The rows (features of the first modality) stay on their device. The columns (features of the second modality) travel
around a ring of devices together with their partial sums, so one pass serves both directions. The backward pass goes
around the ring once more and recomputes the blocks. Automatic differentiation would save the columns of every ring
step, that is all features, on each device.

On a mesh with several axes, devices form groups. All devices of a group hold the rows of the whole group, so columns
visit only one device per group, and partial sums are reduced over the group at the end. On 16 x 16 devices this takes
16 ring steps and a reduction over 16 devices instead of 256 ring steps, as in 2D-partitioned matrix multiplication (van
de Geijn and Watts, SUMMA: Scalable Universal Matrix Multiplication Algorithm, 1997).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.sharding import map_row_shards, num_chunks, ring_scan, row_axes

MASKED_LOGIT = -1e30
"""Logit of masked pairs."""

MAX_BLOCK = 2**22
"""Maximum number of logits in a block on one device: 16 MiB of float32."""

Axes = tuple[str, ...]
Vector = Float[Array, " b"]
Block = Float[Array, "rows columns"]
Mask = Bool[Array, "rows columns"]


class Side(NamedTuple):
    """The rows or the columns of a block of pairs.

    Attributes:
      features: float32, L2-normalised.
      valid: False for examples that are neither positives nor negatives.
      labels: equal labels mark positive pairs.
    """

    features: Float[Array, "b width"]
    valid: Bool[Array, " b"]
    labels: Int[Array, " b"]


class SoftmaxSums(NamedTuple):
    """Running sums over the logits of each row or column, as in an online softmax.

    Attributes:
      max: maximum of the logits.
      exp_sum: sum of exp(logit - max).
      positive_sum: sum of the logits of positive pairs.
      num_positives: number of positive pairs.
    """

    max: Vector
    exp_sum: Vector
    positive_sum: Vector
    num_positives: Vector


class SoftmaxResiduals(NamedTuple):
    """Residuals of the backward pass for each row or column.

    Attributes:
      logsumexp: log of the softmax denominator.
      positive_weight: 1 / number of positive pairs; 0 if there are none.
    """

    logsumexp: Vector
    positive_weight: Vector


Upstream = tuple[SoftmaxResiduals, Vector]
"""Residuals and cotangents of the rows or the columns."""


class Softmax:
    """Cross-entropy in both directions, averaged over the positives of an example.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021); Khosla et al.,
    Supervised Contrastive Learning (2020).
    """

    @staticmethod
    def init(size: int) -> SoftmaxSums:
        """Sums of `size` rows or columns before the first block."""
        zero = jnp.zeros(size, jnp.float32)
        return SoftmaxSums(jnp.full(size, MASKED_LOGIT), zero, zero, zero)

    @staticmethod
    def merge(sums: SoftmaxSums, axes: Axes) -> SoftmaxSums:
        """Reduces the sums over mesh axes."""
        new_max = jax.lax.pmax(sums.max, axes)
        sums = sums._replace(exp_sum=sums.exp_sum * jnp.exp(sums.max - new_max))
        return SoftmaxSums(new_max, *(jax.lax.psum(each, axes) for each in sums[1:]))

    @classmethod
    def accumulate(
        cls, logits: Block, positive: Mask, valid: Mask, rows: SoftmaxSums, columns: SoftmaxSums
    ) -> tuple[SoftmaxSums, SoftmaxSums]:
        """Adds a block to the sums of its rows and columns."""
        logits = jnp.where(valid, logits, MASKED_LOGIT)
        return cls._accumulate(logits, positive, valid, rows, 1), cls._accumulate(logits, positive, valid, columns, 0)

    @staticmethod
    def _accumulate(logits: Block, positive: Mask, valid: Mask, sums: SoftmaxSums, axis: int) -> SoftmaxSums:
        new_max = jnp.maximum(sums.max, logits.max(axis))
        weights = jnp.where(valid, jnp.exp(logits - jnp.expand_dims(new_max, axis)), 0.0)
        return SoftmaxSums(
            max=new_max,
            exp_sum=sums.exp_sum * jnp.exp(sums.max - new_max) + weights.sum(axis),
            positive_sum=sums.positive_sum + jnp.where(positive, logits, 0.0).sum(axis),
            num_positives=sums.num_positives + positive.sum(axis, dtype=jnp.float32),
        )

    @classmethod
    def finish(cls, rows: SoftmaxSums, columns: SoftmaxSums) -> tuple[Vector, SoftmaxResiduals, SoftmaxResiduals]:
        """Losses of the examples, and the residuals of rows and columns."""
        (first, row_residuals), (second, column_residuals) = cls._finish(rows), cls._finish(columns)
        return 0.5 * (first + second), row_residuals, column_residuals

    @staticmethod
    def _finish(sums: SoftmaxSums) -> tuple[Vector, SoftmaxResiduals]:
        logsumexp = sums.max + jnp.log(jnp.where(sums.exp_sum > 0, sums.exp_sum, 1.0))
        weight = jnp.where(sums.num_positives > 0, 1.0 / jnp.maximum(sums.num_positives, 1.0), 0.0)
        losses = jnp.where(weight > 0, logsumexp - sums.positive_sum * weight, 0.0)
        return losses, SoftmaxResiduals(logsumexp, weight)

    @classmethod
    def logit_grads(cls, logits: Block, positive: Mask, valid: Mask, rows: Upstream, columns: Upstream) -> Block:
        """Gradient of the sum of cotangent * loss with respect to the logits."""
        logits = jnp.where(valid, logits, MASKED_LOGIT)
        return 0.5 * (cls._grads(logits, positive, valid, rows, 1) + cls._grads(logits, positive, valid, columns, 0))

    @staticmethod
    def _grads(logits: Block, positive: Mask, valid: Mask, side: Upstream, axis: int) -> Block:
        (logsumexp, weight), cotangent = jax.tree.map(lambda x: jnp.expand_dims(x, axis), side)
        probabilities = jnp.where(valid & (weight > 0), jnp.exp(logits - logsumexp), 0.0)
        return cotangent * (probabilities - jnp.where(positive, weight, 0.0))


class Sigmoid:
    """Binary cross-entropy of each pair; the loss of an example is the sum over its row.

    Zhai et al., Sigmoid Loss for Language Image Pre-Training (2023). Columns need neither sums nor residuals.
    """

    @staticmethod
    def init(size: int) -> Vector:
        """Zero losses of `size` rows."""
        return jnp.zeros(size, jnp.float32)

    @staticmethod
    def merge(losses: Vector, axes: Axes) -> Vector:
        """Reduces the losses over mesh axes."""
        return jax.lax.psum(losses, axes)

    @staticmethod
    def accumulate(logits: Block, positive: Mask, valid: Mask, rows: Vector, columns: Any) -> tuple[Vector, Any]:
        """Adds a block to the losses of its rows."""
        signed = jnp.where(positive, logits, -logits)
        return rows - jnp.where(valid, jax.nn.log_sigmoid(signed), 0.0).sum(1), columns

    @staticmethod
    def finish(rows: Vector, columns: Any) -> tuple[Vector, None, None]:
        """Losses of the examples; no residuals."""
        return rows, None, None

    @staticmethod
    def logit_grads(logits: Block, positive: Mask, valid: Mask, rows: tuple[None, Vector], columns: Any) -> Block:
        """Gradient of the sum of cotangent * loss with respect to the logits; see `Softmax.logit_grads`."""
        sign = jnp.where(positive, 1.0, -1.0)
        return -rows[1][:, None] * jnp.where(valid, sign * jax.nn.sigmoid(-sign * logits), 0.0)


LOSSES = {"softmax": Softmax, "sigmoid": Sigmoid}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_losses(
    kind: str,
    first: Float[Array, "batch width"],
    second: Float[Array, "batch width"],
    temperature: Float[Array, ""],
    bias: Float[Array, ""],
    valid: Bool[Array, " batch"],
    labels: Int[Array, " batch"],
) -> Float[Array, " batch"]:
    """Contrastive loss of each example against the whole batch, split over all devices of the mesh.

    Args:
      kind: a key of `LOSSES`.
      first, second: L2-normalised features, float32.
      temperature, bias: the logit of a pair is temperature * cosine + bias.
      valid: False for examples that are neither positives nor negatives; their loss is 0.
      labels: pairs with equal labels are positive.
    """
    return _forward(kind, first, second, temperature, bias, valid, labels)[0]


def _block(rows: Side, columns: Side) -> tuple[Block, Mask, Mask]:
    """Cosine similarities, mask of positive pairs, mask of valid pairs."""
    cosines = jnp.einsum("iw,jw->ij", rows.features, columns.features, preferred_element_type=jnp.float32)
    valid = rows.valid[:, None] & columns.valid[None, :]
    return cosines, valid & (rows.labels[:, None] == columns.labels[None, :]), valid


def _split_axes(axes: Axes) -> tuple[Axes, Axes]:
    """Splits the mesh axes of a batch into ring axes and group axes; group axes are the fastest-varying ones.

    Minimises the number of steps: the number of groups plus the group size. Since a device holds the rows of its whole
    group, the group size squared is at most 4 times the number of devices.
    """
    count = jax.lax.axis_size(axes)
    sizes = {cut: jax.lax.axis_size(axes[cut:]) for cut in range(len(axes), 0, -1)}
    allowed = [cut for cut, size in sizes.items() if size**2 <= 4 * count]
    cut = min(allowed, key=lambda cut: sizes[cut] + count // sizes[cut], default=len(axes))
    return axes[:cut], axes[cut:]


def _gather_group(tree: Any, group: Axes) -> Any:
    """All-gathers arrays over the devices of a group along the first axis."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, group, tiled=True), tree)


def _local_rows(tree: Any, group: Axes, size: int) -> Any:
    """Slices the `size` rows of this device out of arrays over the rows of its group."""
    start = jax.lax.axis_index(group) * size
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), tree)


def _ring(body: Callable, carry: Any, visitor: Any, axes: Axes, num_rows: int) -> tuple[Any, Any]:
    """Runs `ring_scan` over `axes`; columns are cut into chunks so that no block exceeds `MAX_BLOCK` logits."""
    num_columns = len(jax.tree.leaves(visitor)[0])
    return ring_scan(body, carry, visitor, axes, chunks=num_chunks(num_columns, num_rows, MAX_BLOCK))


def _forward(kind, first, second, temperature, bias, valid, labels):
    loss = LOSSES[kind]

    def local(axes, first, second, temperature, bias, valid, labels):
        size, (ring_axes, group) = first.shape[0], _split_axes(axes)
        rows = _gather_group(Side(first, valid, labels), group)

        def body(row_sums, visitor):
            columns, column_sums = visitor
            cosines, positive, valid = _block(rows, columns)
            logits = temperature * cosines + bias
            row_sums, column_sums = loss.accumulate(logits, positive, valid, row_sums, column_sums)
            return row_sums, (columns, column_sums)

        visitor = Side(second, valid, labels), loss.init(size)
        row_sums, (_, column_sums) = _ring(body, loss.init(len(rows.valid)), visitor, ring_axes, len(rows.valid))
        return loss.finish(_local_rows(loss.merge(row_sums, group), group, size), column_sums)

    inputs = (first, second, temperature, bias, valid, labels)
    losses, *residuals = map_row_shards(local, row_axes(first.shape[0]), inputs)
    return losses, (*inputs, *residuals)


def _backward(kind, saved, cotangent):
    loss = LOSSES[kind]

    def local(axes, first, second, temperature, bias, valid, labels, row_residuals, column_residuals, cotangent):
        ring_axes, group = _split_axes(axes)
        rows, row_state = _gather_group((Side(first, valid, labels), (row_residuals, cotangent)), group)

        def body(grads, visitor):
            columns, column_state, grad_second = visitor
            cosines, positive, valid = _block(rows, columns)
            logit_grads = loss.logit_grads(temperature * cosines + bias, positive, valid, row_state, column_state)
            grad_first, grad_temperature, grad_bias = grads
            grad_first += temperature * logit_grads @ columns.features
            grad_second += temperature * logit_grads.T @ rows.features
            grads = grad_first, grad_temperature + (logit_grads * cosines).sum(), grad_bias + logit_grads.sum()
            return grads, (columns, column_state, grad_second)

        visitor = Side(second, valid, labels), (column_residuals, cotangent), jnp.zeros_like(second)
        zeros = jnp.zeros_like(rows.features), jnp.zeros(()), jnp.zeros(())
        (grad_first, *scalars), (*_, grad_second) = _ring(body, zeros, visitor, ring_axes, len(rows.valid))
        grad_first = jax.lax.psum_scatter(grad_first, group, tiled=True)
        return grad_first, grad_second, *(jax.lax.psum(x, axes) for x in scalars)

    gradients = map_row_shards(local, row_axes(saved[0].shape[0]), (*saved, cotangent))
    return (*gradients, None, None)


pair_losses.defvjp(_forward, _backward)


def retrieval_ranks(
    first: Float[Array, "batch width"],
    second: Float[Array, "batch width"],
    valid: Bool[Array, " batch"],
    labels: Int[Array, " batch"],
    *,
    unique_labels: bool = False,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """Retrieval rank (0 is best) of the best positive, for each row and for each column.

    The rank is the number of negatives with at least the similarity of the best positive: ties count against the model,
    so a model with constant features does not reach rank 0. Ranks of examples that are not valid are meaningless.

    Args:
      first, second, valid, labels: as in `pair_losses`.
      unique_labels: True if all labels differ; the only positive is then on the diagonal and needs no search.
    """

    def local(axes, first, second, valid, labels):
        size, (ring_axes, group) = first.shape[0], _split_axes(axes)
        rows = _gather_group(Side(first, valid, labels), group)

        def find_best(row_best, visitor):
            columns, column_best = visitor
            cosines, positive, _ = _block(rows, columns)
            positives = jnp.where(positive, cosines, MASKED_LOGIT)
            return jnp.maximum(row_best, positives.max(1)), (columns, jnp.maximum(column_best, positives.max(0)))

        def count_negatives(row_ranks, visitor):
            columns, best, column_ranks = visitor
            cosines, positive, valid = _block(rows, columns)
            negatives = jnp.where(valid & ~positive, cosines, 2 * MASKED_LOGIT)
            column_ranks += (negatives >= best[None, :]).sum(0, dtype=jnp.int32)
            row_ranks += (negatives >= row_best[:, None]).sum(1, dtype=jnp.int32)
            return row_ranks, (columns, best, column_ranks)

        def init(value, dtype):
            return jnp.full(len(rows.valid), value, dtype), jnp.full(size, value, dtype)

        row_best, column_best = init(MASKED_LOGIT, jnp.float32)
        visitor = Side(second, valid, labels), column_best
        search_axes = () if unique_labels else ring_axes
        row_best, visitor = _ring(find_best, row_best, visitor, search_axes, len(rows.valid))
        row_best = jax.lax.pmax(row_best, group)
        row_ranks, column_ranks = init(0, jnp.int32)
        visitor = *visitor, column_ranks
        row_ranks, (*_, column_ranks) = _ring(count_negatives, row_ranks, visitor, ring_axes, len(rows.valid))
        return _local_rows(jax.lax.psum(row_ranks, group), group, size), column_ranks

    features = jax.lax.stop_gradient((first, second))
    return map_row_shards(local, row_axes(first.shape[0]), (*features, valid, labels))

"""Where arrays live: the mesh, the one table of logical axes, and the placement of parameters and batches."""

from mmjax.sharding.mesh import AXES, MeshConfig, Rule, make_mesh, spell
from mmjax.sharding.parameters import parameter, parameter_shardings, whole_parameters
from mmjax.sharding.placement import batch_rows, batch_sharding, batch_shards, place_batch, replicated
from mmjax.sharding.ring import pieces_of, ring, rows_over, split_rows
from mmjax.sharding.rules import (
    RULES,
    ambient_mesh,
    axis_size,
    current_layout,
    current_platform,
    laid_out,
    mesh_axes,
    shard,
    split_over,
)

__all__ = [
    "AXES",
    "RULES",
    "MeshConfig",
    "Rule",
    "ambient_mesh",
    "axis_size",
    "batch_rows",
    "batch_sharding",
    "batch_shards",
    "current_layout",
    "current_platform",
    "laid_out",
    "make_mesh",
    "mesh_axes",
    "parameter",
    "parameter_shardings",
    "pieces_of",
    "place_batch",
    "replicated",
    "ring",
    "rows_over",
    "shard",
    "spell",
    "split_over",
    "split_rows",
    "whole_parameters",
]

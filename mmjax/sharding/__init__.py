"""Sharding: the device mesh, the logical axis table, and the shardings of parameters and batches."""

from mmjax.sharding.mesh import AXES, MeshConfig, Rule, format_mesh, make_mesh
from mmjax.sharding.parameters import parameter, parameter_shardings, unsharded_parameters
from mmjax.sharding.placement import batch_rows, batch_sharding, batch_shards, place_batch, replicated
from mmjax.sharding.ring import map_row_shards, num_chunks, ring_scan, row_axes
from mmjax.sharding.rules import (
    RULES,
    ambient_mesh,
    axis_size,
    current_mesh_config,
    current_platform,
    mesh_axes,
    shard,
    sharding_axes,
    use_mesh_config,
)

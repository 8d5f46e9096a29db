"""Where arrays live: the mesh, the one table of logical axes, and the placement of parameters and batches."""

from mmjax.sharding.distributed import initialize, together
from mmjax.sharding.mesh import AXES, MeshConfig, device_kind, make_mesh
from mmjax.sharding.parameters import parameter, parameter_shardings, whole_parameters
from mmjax.sharding.placement import batch_rows, batch_sharding, batch_shards, place_batch, replicated
from mmjax.sharding.rules import RULES, axis_size, shard

__all__ = [
    "AXES",
    "RULES",
    "MeshConfig",
    "axis_size",
    "batch_rows",
    "batch_sharding",
    "batch_shards",
    "device_kind",
    "initialize",
    "make_mesh",
    "parameter",
    "parameter_shardings",
    "place_batch",
    "replicated",
    "shard",
    "together",
    "whole_parameters",
]

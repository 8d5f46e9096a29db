"""Ahead-of-time plans of the train step: FLOPs, memory, time and collectives, without running it."""

from mmjax.planning.chips import peak_flops
from mmjax.planning.flops import matmul_flops, step_flops, training_flops
from mmjax.planning.topology import topology_devices

__all__ = ["matmul_flops", "peak_flops", "step_flops", "topology_devices", "training_flops"]

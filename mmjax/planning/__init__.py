"""Ahead-of-time plans of the train step: FLOPs, memory, time and collectives, without running it."""

from mmjax.planning.chips import peak_flops
from mmjax.planning.flops import matmul_flops, step_flops, training_flops
from mmjax.planning.topology import topology_devices

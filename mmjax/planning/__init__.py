"""What a step costs, known before or beside running it."""

from mmjax.planning.flops import matmul_flops, peak_flops, training_flops

__all__ = ["matmul_flops", "peak_flops", "training_flops"]

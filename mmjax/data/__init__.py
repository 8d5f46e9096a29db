"""The input pipeline: order, sampling, packing, batching."""

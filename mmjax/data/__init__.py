"""Input pipeline: index sampling, filtering, packing, batching."""

"""Reserved output names of fusions."""

FUSED = "fused"
"""Key of the fused tokens in the output of every fusion."""

"""The name under which every fusion gives what it read out of all modalities."""

FUSED = "fused"

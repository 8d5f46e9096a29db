"""Losses that Optax does not have."""

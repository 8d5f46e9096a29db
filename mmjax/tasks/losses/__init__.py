"""Losses that Optax does not provide."""

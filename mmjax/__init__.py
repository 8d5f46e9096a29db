"""Trains large multimodal models in JAX from one config file."""

__version__ = "0.1.0"

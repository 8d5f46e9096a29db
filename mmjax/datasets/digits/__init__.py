"""Digit datasets of image, audio and text: `digits` (generated) and `avmnist` (MNIST and recorded speech)."""

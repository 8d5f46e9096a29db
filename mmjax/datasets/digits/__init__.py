"""Digits that are seen, heard and asked about: the generated dataset and AV-MNIST."""

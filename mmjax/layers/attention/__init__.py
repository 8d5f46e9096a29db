"""Attention: the function, the module, its kernels, and attention over tokens split between devices."""

from mmjax.layers.attention.attend import attend
from mmjax.layers.attention.module import Attention

__all__ = ["Attention", "attend"]

"""Attention: `attend`, the `Attention` module, kernels per platform, and attention over tokens split across devices."""

from mmjax.layers.attention.attend import attend
from mmjax.layers.attention.module import Attention

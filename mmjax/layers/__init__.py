"""Neural network layers shared by encoders, fusions and tasks."""

from mmjax.layers.attention import Attention, attend
from mmjax.layers.block import Block
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import MLP
from mmjax.layers.norms import GroupNorm, LayerNorm
from mmjax.layers.pooling import AttentionPooling, first_pool, last_pool, mean_pool
from mmjax.layers.positions import sincos_positions
from mmjax.layers.precision import Precision
from mmjax.layers.randomness import Randomness, drop_path, dropout
from mmjax.layers.stack import REMATERIALISATION, Stack
from mmjax.layers.transformer import VARIANTS, Transformer, TransformerConfig

"""Fusions: what lets modalities read each other. A new one is a file here and a line in `FUSIONS`.

A fusion is a `flax.nnx.Module` with a nested dataclass `Config`, made as
`Fusion(config, widths, precision=precision, rngs=rngs)`, where `widths` maps the names of the encoders to the widths of
their tokens. It is called as `fusion(tokens, random)` on `{name: Tokens}` and returns `{name: Tokens}`: those that went
in, as the fusion left them, and what it read out of all of them under the name `FUSED`. `fusion.widths` maps the
names of its results to their widths.
"""

from mmjax.fusion.concatenation import Concatenation
from mmjax.fusion.cross_attention import CrossAttention
from mmjax.fusion.gated_average import GatedAverage
from mmjax.fusion.names import FUSED

FUSIONS = {
    "cross_attention": CrossAttention,
    "concatenation": Concatenation,
    "gated_average": GatedAverage,
}

__all__ = ["FUSED", "FUSIONS"]

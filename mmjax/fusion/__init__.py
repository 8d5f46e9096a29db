"""Fusions: modules that exchange information between modalities, by kind in `FUSIONS`.

A fusion is a `flax.nnx.Module` with

- a nested dataclass `Config` of its options;
- a constructor `Fusion(config, widths, precision=precision, rngs=rngs)`, where `widths` is {encoder name: token width};
- a call `fusion(tokens, rng)`, which maps {encoder name: Tokens} to the updated tokens of each encoder and the fused
  tokens under the key `FUSED`; `rng` is None outside training;
- an attribute `widths`, {output name: token width}.

To add a fusion, add a file here and a line in `FUSIONS`.
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

"""Array types of the attention kernels; `QueryIds` and `KeyIds` are segment ids."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

Query = Float[Array, "batch queries heads depth"]
Key = Float[Array, "batch keys heads depth"]
QueryIds = Int[Array, "batch queries"]
KeyIds = Int[Array, "batch keys"]

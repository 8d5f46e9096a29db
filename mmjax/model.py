"""Multimodal model: encoders, a fusion and task heads, built from a config.

The model treats all modalities alike and never refers to one by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from mmjax.config import choose, convert_value_errors
from mmjax.encoders import ENCODERS
from mmjax.errors import UserError, nearest
from mmjax.fusion import FUSIONS
from mmjax.layers import Precision, Randomness
from mmjax.tasks import TASKS
from mmjax.tasks.base import ENCODED
from mmjax.tokens import Batch, InputSpec, TargetSpec, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Config section `model`.

    Attributes:
      encoders: {input name: {"kind": key of `ENCODERS`, …}}.
      fusion: {"kind": key of `FUSIONS`, …}, or None for separate towers that only a loss connects.
    """

    encoders: dict[str, Any]
    fusion: Any = None

    def __post_init__(self):
        if not self.encoders:
            raise ValueError("encoders is empty; add one for each input of the model")


class Model(nnx.Module):
    """Encoders, optional fusion, and task heads.

    Args:
      config: config section `model`.
      tasks: config section `tasks`, {task name: {"kind": key of `TASKS`, …}}.
      inputs: {input name: InputSpec} of the dataset.
      targets: {target name: TargetSpec} of the dataset.

    Raises:
      UserError: if a section names a missing input or target, or options do not fit the data.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: Mapping[str, Any],
        inputs: Mapping[str, InputSpec],
        targets: Mapping[str, TargetSpec],
        *,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.encoders: nnx.Dict[Any] = nnx.Dict()
        for name, section in config.encoders.items():
            where = f"model.encoders.{name}"
            if name not in inputs:
                raise UserError(where, f"the data has no input {name!r}", nearest(name, inputs))
            cls, options = choose(ENCODERS, section, where)
            _check_kind(cls, section["kind"], inputs[name], where)
            with convert_value_errors(where):
                self.encoders[name] = cls(options, inputs[name], precision=precision, rngs=rngs)
        widths = {name: encoder.width for name, encoder in self.encoders.items()}
        readable = {ENCODED + name: width for name, width in widths.items()}
        if config.fusion is None:
            self.fusion = None
        else:
            cls, options = choose(FUSIONS, config.fusion, "model.fusion")
            with convert_value_errors("model.fusion"):
                self.fusion = cls(options, widths, precision=precision, rngs=rngs)
            readable |= self.fusion.widths
        if not tasks:
            raise UserError("tasks", "is empty", "add at least one task")
        self.tasks: nnx.Dict[Any] = nnx.Dict()
        for name, section in tasks.items():
            cls, options = choose(TASKS, section, f"tasks.{name}")
            with convert_value_errors(f"tasks.{name}"):
                self.tasks[name] = cls(options, name, readable, dict(targets), rngs=rngs)

    def outputs(self, batch: Batch, rng: Randomness | None = None) -> dict[str, Tokens]:
        """Returns {name: Tokens} of all encoders and the fusion; `batch` must have passed `Batch.zero_absent`."""
        tokens = {
            name: encoder(batch.inputs[name], None if rng is None else rng.fold_in(name))
            for name, encoder in self.encoders.items()
        }
        outputs = {ENCODED + name: encoded for name, encoded in tokens.items()}
        if self.fusion is not None:
            outputs |= self.fusion(tokens, None if rng is None else rng.fold_in("fusion"))
        return outputs

    def features(self, batch: Batch, rng: Randomness | None = None) -> dict[str, Any]:
        """Returns per-example head outputs, {task name: arrays [B, ...]}; applies `Batch.zero_absent` to the batch."""
        outputs = self.outputs(batch.zero_absent(), rng)
        return {name: task.features(outputs) for name, task in self.tasks.items()}


def _check_kind(cls: Any, kind: str, spec: InputSpec, where: str) -> None:
    """Raises UserError if encoder `cls` cannot read inputs of this spec, for example a text encoder given an image."""

    def layout(spec: InputSpec) -> tuple[int, str, int, int]:
        dtype_kind = "float" if spec.dtype.startswith("float") else "int"
        return len(spec.shape), dtype_kind, spec.mask_rank, spec.axes

    def reads(encoder: Any) -> bool:
        # Table rows and waveforms have the same layout; the required `details` keys tell them apart.
        example = getattr(encoder, "packed_example", None) if spec.axes else encoder.example
        return example is not None and layout(example) == layout(spec) and set(example.details) <= set(spec.details)

    if not reads(cls):
        compatible = [name for name, other in ENCODERS.items() if reads(other)]
        remedy = f"choose {' or '.join(map(repr, compatible))}" if compatible else "write an encoder for this input"
        packed = "packed " if spec.axes else ""
        raise UserError(f"{where}.kind", f"{kind!r} does not read {packed}{list(spec.shape)} {spec.dtype}", remedy)

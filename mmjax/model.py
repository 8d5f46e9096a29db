"""The model: encoders, a fusion and tasks, put together from a config. It knows no modality by name."""

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
    """The section `model`.

    Attributes:
      encoders: {name of an input: {"kind": a name in `ENCODERS`, …}}.
      fusion: {"kind": a name in `FUSIONS`, …}, or None for towers that meet in a loss only.
    """

    encoders: dict[str, Any]
    fusion: Any = None

    def __post_init__(self):
        if not self.encoders:
            raise ValueError("encoders is empty; name one for each input that the model reads")


class Model(nnx.Module):
    """Encoders, fusion and tasks.

    Args:
      config: the section `model`.
      tasks: the section `tasks`, {name: {"kind": a name in `TASKS`, …}}.
      inputs: what each input of the data looks like.
      targets: what each target of the data looks like.
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
            raise UserError("tasks", "is empty", "name at least one task")
        self.tasks: nnx.Dict[Any] = nnx.Dict()
        for name, section in tasks.items():
            cls, options = choose(TASKS, section, f"tasks.{name}")
            with convert_value_errors(f"tasks.{name}"):
                self.tasks[name] = cls(options, name, readable, dict(targets), rngs=rngs)

    def outputs(self, batch: Batch, rng: Randomness | None = None) -> dict[str, Tokens]:
        """All tokens that a task may read, from a batch after `Batch.zero_absent`."""
        tokens = {
            name: encoder(batch.inputs[name], None if rng is None else rng.fold_in(name))
            for name, encoder in self.encoders.items()
        }
        outputs = {ENCODED + name: encoded for name, encoded in tokens.items()}
        if self.fusion is not None:
            outputs |= self.fusion(tokens, None if rng is None else rng.fold_in("fusion"))
        return outputs

    def features(self, batch: Batch, rng: Randomness | None = None) -> dict[str, Any]:
        """What each task's head makes of each example, from any batch."""
        outputs = self.outputs(batch.zero_absent(), rng)
        return {name: task.features(outputs) for name, task in self.tasks.items()}


def _check_kind(cls: Any, kind: str, spec: InputSpec, where: str) -> None:
    """Raises a UserError where an encoder of this kind cannot read such an input: an image as text, for example."""

    def form(spec: InputSpec) -> tuple[int, str, int, int]:
        kind = "numbers" if spec.dtype.startswith("float") else "token ids"
        return len(spec.shape), kind, spec.mask_rank, spec.axes

    def reads(encoder: Any) -> bool:
        # Rows of a table have the form of waveforms; what an encoder has to know of its input tells them apart.
        example = getattr(encoder, "packed_example", None) if spec.axes else encoder.example
        return example is not None and form(example) == form(spec) and set(example.details) <= set(spec.details)

    if not reads(cls):
        fitting = [name for name, other in ENCODERS.items() if reads(other)]
        remedy = f"choose {' or '.join(map(repr, fitting))}" if fitting else "write an encoder for this input"
        packed = "packed " if spec.axes else ""
        raise UserError(f"{where}.kind", f"{kind!r} does not read {packed}{list(spec.shape)} {spec.dtype}", remedy)

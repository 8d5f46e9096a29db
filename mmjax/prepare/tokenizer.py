"""Tokenizer training on the texts of the training split: lossless byte-level BPE.

Radford et al., Language Models are Unsupervised Multitask Learners (2019). The same texts give the same file,
regardless of the number of processes and cores.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.prepare.columns import Column
from mmjax.prepare.examined import Examined

FOLDER = "tokenizers"
"""Folder of the tokenizer files in a prepared dataset."""


def check_options(vocabulary_size: int, columns: list[Column]) -> None:
    """Raises UserError early if there is no text column or the package tokenizers is missing."""
    if not columns:
        remedy = "name one with --columns=NAME=COLUMN:text, or omit the option"
        raise UserError(f"--train_tokenizer={vocabulary_size}", "no input is of kind text", remedy)
    _import_tokenizers()


def train(folder: pathlib.Path, examined: Examined, columns: list[Column], rows: np.ndarray) -> dict[str, Any]:
    """Trains a tokenizer on each column and writes `tokenizers/NAME.json`.

    Args:
      folder: folder of the dataset.
      examined: measurements of all rows.
      columns: text inputs.
      rows: row indices of the training split.

    Returns:
      {column: {"file": path relative to the folder, "vocabulary": vocabulary size, "longest": tokens of the longest
      text}}.

    Raises:
      UserError: if no row has a text.
    """
    descriptions = {}
    for column in columns:
        tokenizer = train_bpe(_texts(examined, column, rows), examined.job.config.train_tokenizer)
        lengths = [len(tokenizer.encode(text).ids) for text in _texts(examined, column, rows)]
        if not lengths:
            remedy = "omit --train_tokenizer, or name another column"
            raise UserError("--train_tokenizer", f"no training row has the input {column.name!r}", remedy)
        path = folder / FOLDER / f"{column.name}.json"
        path.parent.mkdir(exist_ok=True)
        tokenizer.save(str(path), pretty=False)
        descriptions[column.name] = {
            "file": f"{FOLDER}/{column.name}.json",
            "vocabulary": max(tokenizer.get_vocab().values()) + 1,
            "longest": max(lengths),
        }
    return descriptions


def train_bpe(texts: Iterator[str], vocabulary_size: int) -> Any:
    """Trains a Hugging Face tokenizer with at most `vocabulary_size` tokens, including the 256 bytes."""
    tokenizers = _import_tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size, initial_alphabet=sorted(alphabet), min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts(examined: Examined, column: Column, rows: np.ndarray) -> Iterator[str]:
    """Yields the texts of the rows that have the column."""
    for row in rows[examined.present[column.name][rows]]:
        yield examined.job.decode(examined.job.row(int(row)), column)


def _import_tokenizers() -> Any:
    """Imports the package tokenizers. Raises UserError if it is missing."""
    # With threads enabled, the library warns at every later fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "--train_tokenizer", "needs the package tokenizers", "pip install 'mmjax[tokenizers]'"
        ) from None
    return tokenizers

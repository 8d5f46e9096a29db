"""Trains a tokenizer on the texts of the training split: byte-pair encoding over bytes, which loses nothing.

Radford et al., Language Models are Unsupervised Multitask Learners (2019). The same texts give the same file, whatever
the number of processes and cores.
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


def check(size: int, columns: list[Column]) -> None:
    """Raises UserError where no tokenizer can be trained, before anything else is done."""
    if not columns:
        remedy = "name one with --columns=NAME=COLUMN:text, or leave the option out"
        raise UserError(f"--train_tokenizer={size}", "no input is a text", remedy)
    _library()


def train(folder: pathlib.Path, examined: Examined, columns: list[Column], rows: np.ndarray) -> dict[str, Any]:
    """Writes `tokenizers/NAME.json` of each column, trained on some rows.

    Returns:
      {column: {"file": its path in the folder, "vocabulary": tokens, "longest": of a text of these rows}}.

    Raises:
      UserError: if the rows have no text.
    """
    trained = {}
    for column in columns:
        tokenizer = fit(_texts(examined, column, rows), examined.job.config.train_tokenizer)
        lengths = [len(tokenizer.encode(text).ids) for text in _texts(examined, column, rows)]
        if not lengths:
            remedy = "leave --train_tokenizer out, or name another column"
            raise UserError("--train_tokenizer", f"no row of training has {column.name!r}", remedy)
        path = folder / FOLDER / f"{column.name}.json"
        path.parent.mkdir(exist_ok=True)
        tokenizer.save(str(path), pretty=False)
        trained[column.name] = {
            "file": f"{FOLDER}/{column.name}.json",
            "vocabulary": tokenizer.get_vocab_size(),
            "longest": max(lengths),
        }
    return trained


def fit(texts: Iterator[str], size: int) -> Any:
    """A tokenizer of Hugging Face `tokenizers` with at most `size` tokens, 256 of which are the bytes."""
    tokenizers = _library()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts(examined: Examined, column: Column, rows: np.ndarray) -> Iterator[str]:
    for row in rows[examined.present[column.name][rows]]:
        yield examined.job.decode(examined.job.row(int(row)), column)


def _library() -> Any:
    # Its threads would warn of every process that is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "--train_tokenizer", "needs the package tokenizers", "pip install 'mmjax[tokenizers]'"
        ) from None
    return tokenizers

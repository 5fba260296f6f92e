"""Texts as token ids, with a tokenizer of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import TextInput
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.tokenizer import load_tokenizer

_SHOWN = 40


def load_text(path: Path) -> str:
    """Reads a text file.

    Raises:
        InputError: the file is missing or is not UTF-8 text.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; convert it with iconv -t UTF-8") from error


def batch_texts(
    texts: Sequence[str], spec: TextInput, folder: Path | None
) -> dict[str, NDArray[Any]]:
    """Returns texts as one batch of token ids.

    Args:
        texts: one for each sequence.
        spec: how they become tokens.
        folder: of the bundle, which holds the tokenizer.

    Returns:
        (batch, length) int64, and the mask of the same shape if there is one.

    Raises:
        InputError: a text is empty or too long, or texts of unequal length have no mask.
    """
    assert folder is not None, "the tokenizer of a text lies in the bundle's folder"
    tokenizer = load_tokenizer(folder / spec.tokenizer)
    rows = []
    for text in texts:
        if not text.strip():
            raise InputError("a text is empty; the model needs at least a word")
        ids = [*spec.prefix, *tokenizer.encode(text).ids, *spec.suffix]
        if len(ids) > spec.max_length:
            raise InputError(
                f"a text of {len(ids)} tokens ({_shown(text)}) is longer than the "
                f"{spec.max_length} that the model takes; shorten it"
            )
        rows.append(ids)
    longest = max(map(len, rows))
    if spec.mask is None and any(len(ids) != longest for ids in rows):
        raise InputError(
            "texts of unequal length do not form a batch, because this model takes no mask; "
            "run them one by one"
        )
    tokens = np.full((len(rows), longest), spec.pad_token, np.int64)
    mask = np.zeros_like(tokens)
    for row, seen, ids in zip(tokens, mask, rows, strict=True):
        row[: len(ids)] = ids
        seen[: len(ids)] = 1
    return {spec.name: tokens} if spec.mask is None else {spec.name: tokens, spec.mask: mask}


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "...")

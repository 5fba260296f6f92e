"""Reads texts and makes batches of token ids with a tokenizer of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import TextInput
from hybrid_deploy.errors import InputError
from hybrid_deploy.input_files import check_file, read_errors
from hybrid_deploy.runtime.tokenizer import (
    MAX_TEXT_CHARACTERS,
    TokenizerSource,
    load_tokenizer,
    prompt_tokens_of,
    token_ids,
)

MAX_TEXT_BYTES = 4 * MAX_TEXT_CHARACTERS
"""Largest size of a text file: UTF-8 takes four bytes of a character at most."""

_SHOWN_CHARACTERS = 40


def load_text(path: Path) -> str:
    """Reads a text file and strips the white space around its text.

    Raises:
        InputError: the file is missing, cannot be opened, is too large, or not UTF-8 text.
    """
    check_file(path)
    if (size_bytes := path.stat().st_size) > MAX_TEXT_BYTES:
        raise InputError(
            f"{path} has {size_bytes} bytes, at most {MAX_TEXT_BYTES} are taken; split it"
        )
    with read_errors(path, "is no text"):
        try:
            return path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text; convert it with iconv -t UTF-8") from error


def batch_texts(
    texts: Sequence[str], spec: TextInput, source: TokenizerSource | None
) -> dict[str, NDArray[Any]]:
    """Returns texts as one batch of token ids.

    Args:
        texts: a text for each sequence.
        spec: description of the model's input.
        source: holds the tokenizer.

    Returns:
        Token ids by input name, (batch, length) int64; and the mask by its name, of the same shape
        and type, if the model takes one.

    Raises:
        InputError: a text is empty, too long or no Unicode, or the texts have unequal lengths and
            the model takes no mask.
        BundleError: the tokenizer's file is missing or damaged.
        MissingDependencyError: `tokenizers` is not installed.
    """
    assert source is not None, "a text needs a tokenizer"
    tokenizer = load_tokenizer(source, spec.tokenizer)
    rows = []
    for text in texts:
        if not text.strip():
            raise InputError("a text is empty; the model needs at least a word")
        if spec.template is None:
            words = token_ids(text, tokenizer, add_special_tokens=True)
        else:
            words = prompt_tokens_of(text, spec.template, tokenizer)
        ids = [*spec.prefix, *words, *spec.suffix]
        if len(ids) > spec.max_length:
            raise InputError(
                f"a text of {len(ids)} tokens ({_shorten(text)}) is longer than the "
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
    for token_row, mask_row, ids in zip(tokens, mask, rows, strict=True):
        token_row[: len(ids)] = ids
        mask_row[: len(ids)] = 1
    return {spec.name: tokens} if spec.mask is None else {spec.name: tokens, spec.mask: mask}


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    shortened = line[: _SHOWN_CHARACTERS - 3] + "..."
    return repr(line if len(line) <= _SHOWN_CHARACTERS else shortened)

"""Checks the arguments of public functions: a wrong one is a UsageError that says what is taken."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from hybrid_deploy.errors import InputError, UsageError

_SHOWN_CHARACTERS = 80


def is_integer(value: object) -> TypeGuard[int]:
    """Returns whether a value is a whole number of any library, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether a value is a finite number of any library, and no bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Checks that a value is a whole number within bounds.

    Raises:
        UsageError: it is something else.
    """
    if not (is_integer(value) and minimum <= value <= (maximum or value)):
        bounds = f"from {minimum} on" if maximum is None else f"from {minimum} to {maximum}"
        raise UsageError(f"{name} must be a whole number {bounds}, got {shown(value)}")


def check_text(name: str, value: object) -> None:
    """Checks that a value is a text of Unicode characters.

    Raises:
        UsageError: it is something else, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} is not Unicode: {error.reason}; write it in UTF-8") from error


def path_of(value: str | Path) -> Path:
    """Returns a path that the file system may have.

    Raises:
        InputError: the value is no path, or has characters that no path has.
    """
    try:
        if b"\0" not in os.fsencode(Path(value)):
            return Path(value)
    except (TypeError, ValueError):
        pass
    raise InputError(f"a path was expected, got {shown(value)}")


def paths_of(values: Sequence[str | Path]) -> list[Path]:
    """Returns the paths in a list.

    Raises:
        InputError: a value is no path.
        UsageError: the values are no list.
    """
    return [path_of(value) for value in _items("a list of paths", values)]


def texts_of(values: Sequence[str]) -> list[str]:
    """Returns the texts in a list.

    Raises:
        UsageError: the values are no list of texts.
    """
    texts = _items("a list of texts", values)
    for text in texts:
        check_text("a text", text)
    return texts


def token_ids_of(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Returns the token ids in a list or an array, as whole numbers of Python.

    Raises:
        UsageError: a value is no whole number from 0 on, or the values are no list.
    """
    tokens = _items(f"token ids as {name}", values)
    for token in tokens:
        if not (is_integer(token) and token >= 0):
            raise UsageError(f"{name} has token {shown(token)}; token ids begin at 0")
    return tuple(map(int, tokens))


def shown(value: object) -> str:
    """Returns a value for a message, shortened."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _items(what: str, values: Any) -> list[Any]:
    if not isinstance(values, (str, bytes, os.PathLike)):
        try:
            return list(values)
        except TypeError:
            pass
    raise UsageError(f"{what} were expected, got {shown(values)}")

"""Reads the weights of a CTranslate2 model from its `model.bin`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import InputError

Weights = Mapping[str, NDArray[Any]]

VERSION = 6
"""Version of the file format that is read here."""

NAME = "WhisperSpec"
"""Name of the only kind of model that is read here."""

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""Types by the number that stands for each in the file."""


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the variables of a Whisper model by their names; settings are arrays of no axis.

    The format is that of `ModelSpec._serialize` in CTranslate2's `specs/model_spec.py`: numbers
    are little-endian, a text has its length (2 bytes, with a final zero) before it. First come
    version, name, revision and number of variables, then each variable with name, shape, type and
    bytes. Pairs of names that share a variable end the file; they are not read, because Whisper's
    output projection always is the table of embeddings.

    Args:
        path: the file.

    Raises:
        InputError: the file cannot be read, or holds no Whisper model of this version.
    """
    try:
        return _variables(_Reader(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, IndexError) as error:
        raise InputError(
            f"{path} is no whole {NAME} of CTranslate2's format {VERSION} ({error}); download it "
            "again"
        ) from error


class _Reader:
    """The bytes of a file, from the front to the back."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def number(self, code: str) -> int:
        """Returns the next whole number, of the size that the code of `struct` names."""
        (value,) = struct.unpack_from(f"<{code}", self._content, self._at)
        self._at += struct.calcsize(code)
        return int(value)

    def text(self) -> str:
        length = self.number("H")
        return self._take(length)[:-1].decode()

    def array(self) -> NDArray[Any]:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(DTYPES[self.number("B")])
        return np.frombuffer(self._take(self.number("I")), dtype).reshape(shape)

    def _take(self, count: int) -> bytes:
        taken = self._content[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("it ends too early")
        self._at += count
        return taken


def _variables(reader: _Reader) -> dict[str, NDArray[Any]]:
    version, name = reader.number("I"), reader.text()
    if (version, name) != (VERSION, NAME):
        raise ValueError(f"it begins with version {version} and {name!r}")
    _revision, count = reader.number("I"), reader.number("I")
    return {reader.text(): reader.array() for _ in range(count)}

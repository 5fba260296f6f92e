"""Calibration samples: files or arrays in, encoder inputs out, one sample at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.inputs import Preprocess
from hybrid_deploy.runtime.preprocess import file_kind, prepare

Inputs: TypeAlias = Mapping[str, NDArray[Any]]
Source: TypeAlias = str | Path | Sequence[str | Path] | Iterable[Inputs]
"""A folder, files, or encoder inputs by name (batch first)."""


class Samples:
    """Samples that can be gone through more than once; files are read anew each time."""

    def __init__(
        self, items: Sequence[Path | Inputs], preprocess: Preprocess, bundle: Path | None = None
    ) -> None:
        self._items = tuple(items)
        self._preprocess = preprocess
        self._bundle = bundle

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Inputs]:
        """Yields the encoder inputs of each sample.

        Raises:
            InputError: a file cannot be read; the message names it.
        """
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Inputs:
        """Gives the encoder inputs of one sample.

        Raises:
            InputError: the file cannot be read; the message names it.
        """
        item = self._items[index]
        if isinstance(item, Path):
            return prepare([item], self._preprocess, folder=self._bundle)
        return item

    @property
    def sha256(self) -> str:
        """Hash of all samples, in their order."""
        digest = hashlib.sha256()
        for inputs in self:
            digest.update(bytes.fromhex(hash_of(inputs)))
        return digest.hexdigest()


def hash_of(inputs: Inputs) -> str:
    """Gives the SHA-256 of a sample as the encoder gets it."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def open_samples(source: Source, preprocess: Preprocess, bundle: Path | None = None) -> Samples:
    """Gives the samples of a folder, of files or of an iterable.

    Args:
        source: where they come from; a folder is not searched below its first level.
        preprocess: how a file becomes the encoder's input.
        bundle: the bundle's folder, which holds the tokenizer of a model that takes text.

    Raises:
        InputError: the folder or a file does not exist.
        CalibrationError: there is not one sample.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        items: list[Path | Inputs] = list(_files(path, preprocess)) if path.is_dir() else [path]
    else:
        items = [Path(item) if isinstance(item, (str, Path)) else dict(item) for item in source]
    if not items:
        raise CalibrationError("no calibration samples were given; give at least one")
    for item in items:
        if isinstance(item, Path) and not item.is_file():
            raise InputError(f"{item} does not exist")
    return Samples(items, preprocess, bundle)


def _files(folder: Path, preprocess: Preprocess) -> list[Path]:
    kind = file_kind(preprocess)
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in kind.suffixes and p.is_file())
    if not found:
        raise CalibrationError(
            f"{folder} holds no {kind.name}; name a folder with calibration samples"
        )
    return [path for path in found if not path.name.startswith(".")]

"""Calibration samples: files or arrays in, encoder inputs out, one sample at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.calibration.samples.array_files import ARRAYS_SUFFIX, checked_arrays, read_arrays
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.runtime.preprocess.prepare import file_kind, prepare

Inputs: TypeAlias = Mapping[str, NDArray[Any]]
SampleSource: TypeAlias = str | Path | Sequence[str | Path] | Iterable[Inputs]
"""A folder, a file, files, or encoder inputs by name (batch first).

Files are of the kind that the model reads, or `.npz`: the encoder inputs of one sample, by name.
"""


@dataclass(frozen=True)
class SkippedSample:
    """A sample that cannot be used and was left out.

    Attributes:
        name: its path, or its place where it is no file.
        reason: what is wrong with it, in a line that names it.
    """

    name: str
    reason: str


class Samples:
    """Samples that can be gone through more than once; files are read anew each time.

    Attributes:
        skipped: those that were left out when the samples were opened.
    """

    def __init__(
        self,
        items: Sequence[Path | Inputs],
        preprocess: Preprocess,
        bundle: Path | None = None,
        encoder: GraphSpec | None = None,
    ) -> None:
        self._items = tuple(enumerate(items))  # with their places, which they keep
        self._preprocess = preprocess
        self._bundle = bundle
        self._encoder = encoder
        self.skipped: tuple[SkippedSample, ...] = ()

    def __len__(self) -> int:
        return len(self._items)

    def __add__(self, other: Samples) -> Samples:
        """Returns these samples, then those of `other`; no file is read.

        Both must be samples of the same bundle.
        """
        joined = Samples((), self._preprocess, self._bundle, self._encoder)
        joined._items = self._items + other._items
        joined.skipped = self.skipped + other.skipped
        return joined

    def __iter__(self) -> Iterator[Inputs]:
        """Yields the encoder inputs of each sample.

        Raises:
            InputError: a sample cannot be used; the message names it.
        """
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Inputs:
        """Returns the encoder inputs of one sample.

        Raises:
            InputError: the sample cannot be used; the message names it.
        """
        try:
            return self._read(index)
        except InputError as error:
            raise InputError(f"{error}; --skip-bad leaves it out") from error

    def name_of(self, index: int) -> str:
        """Returns the path of a sample, or its place where it is no file."""
        place, item = self._items[index]
        return str(item) if isinstance(item, Path) else f"sample {place}"

    def problem_of(self, index: int) -> SkippedSample | None:
        """Reads a sample and gives what is wrong with it; None if it can be used."""
        try:
            self._read(index)
        except InputError as error:
            return SkippedSample(self.name_of(index), str(error))
        return None

    def skip_bad(self) -> None:
        """Reads every sample once and leaves out those that cannot be used.

        Raises:
            CalibrationError: none is left.
        """
        sound = []
        for index, item in enumerate(self._items):
            problem = self.problem_of(index)
            if problem is None:
                sound.append(item)
            else:
                self.skipped += (problem,)
        if not sound:
            raise CalibrationError(
                f"none of the {len(self)} samples can be used: {self.skipped[0].reason}"
            )
        self._items = tuple(sound)

    @property
    def sha256(self) -> str:
        """Hash of all samples, in their order."""
        digest = hashlib.sha256()
        for inputs in self:
            digest.update(bytes.fromhex(sample_sha256(inputs)))
        return digest.hexdigest()

    def _read(self, index: int) -> Inputs:
        _, item = self._items[index]
        name = self.name_of(index)
        if not isinstance(item, Path):
            return checked_arrays(name, item, self._encoder)
        if item.suffix.lower() == ARRAYS_SUFFIX:
            return read_arrays(item, self._encoder)
        try:
            return prepare([item], self._preprocess, folder=self._bundle)
        except InputError as error:
            if name in str(error):
                raise
            raise InputError(f"{name}: {error}") from error


def sample_sha256(inputs: Inputs) -> str:
    """Returns the SHA-256 of a sample as the encoder gets it."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def samples_of(
    bundle: Bundle,
    source: SampleSource | None = None,
    *,
    golden: bool = False,
    skip_bad: bool = False,
    variant: str = FLOAT_VARIANT,
) -> Samples:
    """Returns samples for a bundle: its golden ones, those of a source, or both.

    Args:
        bundle: says what a sample must be.
        source: where samples come from; a folder is not searched below its first level.
        golden: take the bundle's golden samples, before the others.
        skip_bad: leave out what cannot be used; `Samples.skipped` names it.
        variant: whose encoder takes the samples.

    Raises:
        InputError: the folder does not exist, or a file does not and bad ones are not skipped.
        CalibrationError: there is not one sample.
    """
    preprocess = bundle.manifest.preprocess
    items = list[Path | Inputs](golden_samples(bundle)) if golden else []
    if source is not None:
        items += _items(source, preprocess, missing=skip_bad)
    encoder = bundle.variant(variant).encoder
    samples = Samples(_some(items), preprocess, bundle.folder, encoder)
    if skip_bad:
        samples.skip_bad()
    return samples


def open_samples(
    source: SampleSource, preprocess: Preprocess, bundle: Path | None = None
) -> Samples:
    """Returns the samples of a folder, of files or of an iterable.

    Args:
        source: where they come from; a folder is not searched below its first level.
        preprocess: how a file becomes the encoder's input.
        bundle: the bundle's folder, which holds the tokenizer of a model that takes text.

    Raises:
        InputError: the folder or a file does not exist.
        CalibrationError: there is not one sample.
    """
    return Samples(_some(_items(source, preprocess, missing=False)), preprocess, bundle)


def golden_samples(bundle: Bundle) -> list[Path]:
    """Returns the files that a bundle brings as samples.

    Raises:
        CalibrationError: it brings none.
    """
    if not bundle.manifest.golden:
        raise CalibrationError(f"{bundle.folder} has no golden samples; give --samples FOLDER")
    return [bundle.folder / sample.file for sample in bundle.manifest.golden]


def _items(source: SampleSource, preprocess: Preprocess, *, missing: bool) -> list[Path | Inputs]:
    """Lists the samples of a source; single files may be missing if that is allowed."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        return list(_files(path, preprocess)) if path.is_dir() else [path]
    items = [Path(item) if isinstance(item, (str, Path)) else _mapping(item) for item in source]
    for item in items:
        if isinstance(item, Path) and not item.is_file() and not missing:
            raise InputError(f"{item} {'is no file' if item.exists() else 'does not exist'}")
    return items


def _some(items: list[Path | Inputs]) -> list[Path | Inputs]:
    if not items:
        raise CalibrationError("no calibration samples were given; give at least one")
    return items


def _mapping(item: object) -> Inputs:
    if not isinstance(item, Mapping):
        raise InputError(
            "a sample must be a file, or arrays by the names of the encoder's inputs; "
            f"got {type(item).__name__}"
        )
    return dict(item)


def _files(folder: Path, preprocess: Preprocess) -> list[Path]:
    """Lists the files that the model reads, or `.npz` files where there are none."""
    kind = file_kind(preprocess)
    there = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    for suffixes in (kind.suffixes, {ARRAYS_SUFFIX}):
        if found := [path for path in there if path.suffix.lower() in suffixes]:
            return found
    raise CalibrationError(f"{folder} holds no {kind.name}; name a folder with calibration samples")

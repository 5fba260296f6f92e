"""Samples of files or arrays, turned into encoder inputs one sample at a time."""

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
from hybrid_deploy.calibration.samples.array_files import checked_arrays, read_arrays
from hybrid_deploy.contract import FLOAT_VARIANT
from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.input_files import check_file
from hybrid_deploy.runtime.preprocess.array_files import ARRAYS_SUFFIX
from hybrid_deploy.runtime.preprocess.prepare import file_kind, prepare

Inputs: TypeAlias = Mapping[str, NDArray[Any]]
SampleSource: TypeAlias = str | Path | Sequence[str | Path] | Iterable[Inputs]
"""A folder, a file, files, or encoder inputs by name (batch first).

A file is of the kind that the model reads, or an `.npz` file that holds the encoder inputs of one
sample by name.
"""


@dataclass(frozen=True)
class SkippedSample:
    """A sample that cannot be used and was left out.

    Attributes:
        name: the sample's path, or `sample` and its index in the source if it is not a file.
        reason: why it cannot be used, in one line that names the sample.
    """

    name: str
    reason: str


class Samples:
    """Samples that can be iterated more than once; every iteration reads the files again.

    Attributes:
        skipped: samples that cannot be used and were left out by `skip_bad`.

    Args:
        items: files, or encoder inputs by name.
        preprocess: the steps that turn a file into encoder inputs.
        bundle: the bundle's folder, which holds the tokenizer of a model that takes text.
        encoder: the encoder graph that arrays are checked against; None checks nothing.
    """

    def __init__(
        self,
        items: Sequence[Path | Inputs],
        preprocess: Preprocess,
        bundle: Path | None = None,
        encoder: GraphSpec | None = None,
    ) -> None:
        # each item with its index in the source, which names it even after others are left out
        self._items = tuple(enumerate(items))
        self._preprocess = preprocess
        self._bundle = bundle
        self._encoder = encoder
        self.skipped: tuple[SkippedSample, ...] = ()

    def __len__(self) -> int:
        return len(self._items)

    def __add__(self, other: Samples) -> Samples:
        """Returns these samples followed by those of `other`, of the same bundle; reads no file."""
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
        """Returns the path of a sample, or `sample` and its index in the source."""
        source_index, item = self._items[index]
        return str(item) if isinstance(item, Path) else f"sample {source_index}"

    def problem_with(self, index: int) -> SkippedSample | None:
        """Reads a sample and returns why it cannot be used; None if it can be used."""
        try:
            self._read(index)
        except InputError as error:
            return SkippedSample(self.name_of(index), str(error))
        return None

    def skip_bad(self) -> None:
        """Reads every sample once and leaves out those that cannot be used.

        Raises:
            CalibrationError: no sample can be used.
        """
        usable = []
        for index, item in enumerate(self._items):
            problem = self.problem_with(index)
            if problem is None:
                usable.append(item)
            else:
                self.skipped += (problem,)
        if not usable:
            raise CalibrationError(
                f"none of the {len(self)} samples can be used: {self.skipped[0].reason}"
            )
        self._items = tuple(usable)

    @property
    def sha256(self) -> str:
        """SHA-256 of the encoder inputs of all samples, in their order."""
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
    """Returns the SHA-256 of one sample's encoder inputs: names, types, shapes and contents."""
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
    """Returns samples for a bundle: its golden samples, those of a source, or both.

    Args:
        bundle: its preprocessing turns a file into encoder inputs.
        source: the samples; of a folder only the files at its top level are taken.
        golden: whether to take the bundle's golden samples too; they come before those of the
            source.
        skip_bad: whether to leave out samples that cannot be used; `Samples.skipped` names them.
        variant: name of the variant whose encoder checks the arrays.

    Raises:
        InputError: a source that is one path does not exist, or a file of several does not exist
            and `skip_bad` is False.
        CalibrationError: there is no sample, or none can be used.
    """
    preprocess = bundle.manifest.preprocess
    items = list[Path | Inputs](golden_samples(bundle)) if golden else []
    if source is not None:
        items += _items(source, preprocess, allow_missing=skip_bad)
    encoder = bundle.variant(variant).encoder
    samples = Samples(_not_empty(items), preprocess, bundle.folder, encoder)
    if skip_bad:
        samples.skip_bad()
    return samples


def example_of(bundle: Bundle, variant: str = FLOAT_VARIANT) -> Samples | None:
    """Returns the example of the export as a sample; None if the bundle has real golden samples.

    It is no data to calibrate with, but shows how a variant behaves where nothing else is at hand.

    Args:
        bundle: the bundle.
        variant: name of the variant whose encoder checks the arrays.
    """
    files = [bundle.folder / sample.file for sample in bundle.manifest.golden if sample.is_example]
    if bundle.manifest.real_golden or not files:
        return None
    return Samples(
        files, bundle.manifest.preprocess, bundle.folder, bundle.variant(variant).encoder
    )


def open_samples(
    source: SampleSource, preprocess: Preprocess, bundle: Path | None = None
) -> Samples:
    """Returns the samples of a folder, of files or of an iterable.

    Args:
        source: the samples; of a folder only the files at its top level are taken.
        preprocess: the steps that turn a file into encoder inputs.
        bundle: the bundle's folder, which holds the tokenizer of a model that takes text.

    Raises:
        InputError: the folder or a file does not exist.
        CalibrationError: there is no sample.
    """
    items = _items(source, preprocess, allow_missing=False)
    return Samples(_not_empty(items), preprocess, bundle)


def golden_samples(bundle: Bundle) -> list[Path]:
    """Returns the paths of a bundle's golden samples, without the example of the export.

    Raises:
        CalibrationError: the bundle has none.
    """
    if not bundle.manifest.real_golden:
        raise CalibrationError(f"{bundle.folder} has no golden samples; give --samples FOLDER")
    return [bundle.folder / sample.file for sample in bundle.manifest.real_golden]


def _items(
    source: SampleSource, preprocess: Preprocess, *, allow_missing: bool
) -> list[Path | Inputs]:
    """Lists the samples of a source; with `allow_missing`, files of a list need not exist."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            check_file(path)
        return list(_files(path, preprocess)) if path.is_dir() else [path]
    items = [
        Path(item) if isinstance(item, (str, Path)) else _checked_mapping(item) for item in source
    ]
    for item in items:
        if isinstance(item, Path) and not allow_missing:
            check_file(item)
    return items


def _not_empty(items: list[Path | Inputs]) -> list[Path | Inputs]:
    if not items:
        raise CalibrationError("no calibration samples were given; give at least one")
    return items


def _checked_mapping(item: object) -> Inputs:
    if not isinstance(item, Mapping):
        raise InputError(
            "a sample must be a file, or arrays by the names of the encoder's inputs; "
            f"got {type(item).__name__}"
        )
    return dict(item)


def _files(folder: Path, preprocess: Preprocess) -> list[Path]:
    """Lists the files of the kind that the model reads, or the `.npz` files if there are none.

    What has such a name and is no file, as a dangling link or a folder, is listed too: it fails
    when it is read, with its name.
    """
    kind = file_kind(preprocess)
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for suffixes in (kind.suffixes, {ARRAYS_SUFFIX}):
        if matching := [path for path in paths if path.suffix.lower() in suffixes]:
            return matching
    raise CalibrationError(f"{folder} holds no {kind.name}; name a folder with calibration samples")

"""All that calibration saw, sample by sample: it can be saved, resumed, merged, and used again."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.calibration.statistics.fingerprint import Fingerprint
from hybrid_deploy.calibration.statistics.range_methods import range_method
from hybrid_deploy.calibration.statistics.scales import Provenance, Scales, StoredChannels
from hybrid_deploy.calibration.statistics.tensor_statistics import TensorStatistics
from hybrid_deploy.errors import CalibrationError, InputError

_ABOUT = "about"
_KEYS = ("bins", "counts", "samples", "extremes")
_CHANNEL_KEYS = ("largest", "sums", "rows")
_DAMAGED = (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, msgspec.MsgspecError)


class SampleRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sample that was decoded: its hash as the encoder got it, and the number of steps."""

    sha256: str
    steps: int


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layout: Literal[2]  # of the arrays; 1 had no channels
    origin: Fingerprint
    samples: dict[int, SampleRecord]
    tensors: dict[str, list[str]]


StatisticsByTensor = dict[str, dict[str, TensorStatistics]]
"""Statistics by graph and tensor."""


@dataclass
class Observations:
    """What the tensors of a float variant held while samples were decoded.

    Attributes:
        origin: what was run.
        samples: by index, those that were decoded to their end.
        tensors: statistics over these samples, by graph and tensor.
    """

    fingerprint: Fingerprint
    samples: dict[int, SampleRecord] = field(default_factory=dict)
    tensors: StatisticsByTensor = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many decoding steps were run, over all samples."""
        return sum(record.steps for record in self.samples.values())

    @property
    def tensor_count(self) -> int:
        """How many tensors were seen, in all graphs."""
        return sum(len(statistics) for statistics in self.tensors.values())

    def add(self, index: int, record: SampleRecord, seen: StatisticsByTensor) -> None:
        """Adds a sample with what the tensors held for it."""
        self._take_in(seen)
        self.samples[index] = record

    def merge(self, other: Observations) -> None:
        """Adds what was seen in another run, of other samples.

        Raises:
            CalibrationError: it ran other graphs or versions, or one of these samples.
        """
        if other.fingerprint != self.fingerprint:
            raise CalibrationError(
                f"observations of {_named(self.fingerprint)} and of {_named(other.fingerprint)} do not add "
                "up; collect both from the same bundle, with the same versions"
            )
        if both := self.samples.keys() & other.samples.keys():
            raise CalibrationError(f"sample {min(both)} is in both observations; give each once")
        self._take_in(other.tensors)
        self.samples |= other.samples

    def scales(self, method: str) -> Scales:
        """Returns the ranges of all tensors.

        Raises:
            UsageError: there is no such method.
        """
        choose, digest = range_method(method), hashlib.sha256()
        for index in sorted(self.samples):
            digest.update(bytes.fromhex(self.samples[index].sha256))
        return Scales(
            provenance=Provenance(
                model=self.fingerprint.model,
                variant=self.fingerprint.variant,
                graphs=self.fingerprint.graphs,
                weights=self.fingerprint.weights,
                samples=len(self.samples),
                samples_sha256=digest.hexdigest(),
                steps=self.steps,
                method=method,
                producer=self.fingerprint.producer,
            ),
            ranges={
                role: {name: choose(statistics[name]) for name in sorted(statistics)}
                for role, statistics in sorted(self.tensors.items())
            },
            channels=self._channels(),
        )

    def save(self, path: Path) -> None:
        """Writes everything to one file, which holds the old content or the new, never a part."""
        names = {role: list(statistics) for role, statistics in self.tensors.items()}
        about = _About(2, self.fingerprint, self.samples, names)
        arrays = {_ABOUT: np.frombuffer(msgspec.json.encode(about), np.uint8)}
        for role, statistics in self.tensors.items():
            for number, one in enumerate(statistics.values()):
                arrays |= {f"{role}/{number}/{key}": a for key, a in one.arrays().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue())

    def _take_in(self, tensors: StatisticsByTensor) -> None:
        for role, statistics in tensors.items():
            known = self.tensors.setdefault(role, {})
            for name, new in statistics.items():
                if name not in known:
                    known[name] = TensorStatistics(new.tensor, by_channel=new.channels is not None)
                known[name].merge(new)

    def _channels(self) -> dict[str, dict[str, StoredChannels]]:
        found = {
            role: {
                name: StoredChannels.of(seen.summary())
                for name in sorted(statistics)
                if (seen := statistics[name].channels) is not None
            }
            for role, statistics in sorted(self.tensors.items())
        }
        return {role: channels for role, channels in found.items() if channels}


def read_observations(path: Path) -> Observations:
    """Reads what `save` wrote.

    Raises:
        InputError: there is no such file.
        CalibrationError: it does not hold observations.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no .npz file")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            about = msgspec.json.decode(file[_ABOUT].tobytes(), type=_About)
            tensors: StatisticsByTensor = {}
            for role, names in about.tensors.items():
                tensors[role] = {}
                for number, name in enumerate(names):
                    by_channel = f"{role}/{number}/rows" in file
                    keys = _KEYS + _CHANNEL_KEYS if by_channel else _KEYS
                    arrays = {key: file[f"{role}/{number}/{key}"] for key in keys}
                    tensors[role][name] = TensorStatistics.from_arrays(f"{role}/{name}", arrays)
    except _DAMAGED as error:
        raise CalibrationError(
            f"{path} does not hold observations: {error}; collect them again"
        ) from error
    return Observations(about.origin, about.samples, tensors)


def _named(origin: Fingerprint) -> str:
    return f"{origin.model} {origin.variant} ({origin.producer})"

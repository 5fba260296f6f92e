"""The observations of a calibration, sample by sample; they can be saved, resumed and merged.

A file of observations is an `.npz`: the array `about` holds JSON (`_About`), and the array
`ROLE/NUMBER/KEY` holds one array of the statistics of the NUMBER-th tensor of that graph.
"""

from __future__ import annotations

import hashlib
import io
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
from hybrid_deploy.input_files import check_file
from hybrid_deploy.runtime.preprocess.array_files import read_npz

_ABOUT = "about"
_KEYS = ("bins", "counts", "samples", "extremes")
_CHANNEL_KEYS = ("largest", "sums", "rows")
_DAMAGED = (InputError, ValueError, LookupError, msgspec.MsgspecError)


class SampleRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decoded sample.

    Attributes:
        sha256: SHA-256 of its encoder inputs.
        steps: number of decoding steps, with the prefill as one.
    """

    sha256: str
    steps: int


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layout: Literal[2]  # version of the arrays' layout; layout 1 had no channels
    origin: Fingerprint
    samples: dict[int, SampleRecord]
    tensors: dict[str, list[str]]
    all_samples: int | None = None  # unknown to older versions


StatisticsByTensor = dict[str, dict[str, TensorStatistics]]
"""Statistics by the role of the graph and the name of the tensor."""


@dataclass
class Observations:
    """Statistics of the tensors of a float variant, collected while samples were decoded.

    Attributes:
        fingerprint: the model, files and versions that were run.
        samples: the samples that were decoded to their end, by their index.
        tensors: statistics over these samples, by graph and tensor.
        all_samples: number of samples over all shards; None if older versions collected these.
    """

    fingerprint: Fingerprint
    samples: dict[int, SampleRecord] = field(default_factory=dict)
    tensors: StatisticsByTensor = field(default_factory=dict)
    all_samples: int | None = None

    @property
    def steps(self) -> int:
        """Number of decoding steps over all samples."""
        return sum(record.steps for record in self.samples.values())

    @property
    def tensor_count(self) -> int:
        """Number of observed tensors over all graphs."""
        return sum(len(statistics) for statistics in self.tensors.values())

    def add(self, index: int, record: SampleRecord, tensors: StatisticsByTensor) -> None:
        """Adds a sample with the statistics of its tensors."""
        self._merge_tensors(tensors)
        self.samples[index] = record

    def merge(self, other: Observations) -> None:
        """Adds the observations of another run over other samples; `other` stays unchanged.

        Raises:
            CalibrationError: the other run used other graphs or versions, is a shard of another
                number of samples, or has a sample that these observations have.
        """
        if other.fingerprint != self.fingerprint:
            ours, theirs = _described(self.fingerprint), _described(other.fingerprint)
            raise CalibrationError(
                f"observations of {ours} and of {theirs} cannot be merged; collect both from the "
                "same bundle, with the same versions"
            )
        if both := self.samples.keys() & other.samples.keys():
            raise CalibrationError(f"sample {min(both)} is in both observations; give each once")
        if None not in (counts := {self.all_samples, other.all_samples}) and len(counts) > 1:
            raise CalibrationError(
                f"shards of {self.all_samples} and {other.all_samples} samples cannot be merged; "
                "collect all shards from the same samples"
            )
        self._merge_tensors(other.tensors)
        self.samples |= other.samples
        self.all_samples = self.all_samples or other.all_samples

    def check_complete(self) -> None:
        """Checks that no shard is missing.

        Raises:
            CalibrationError: a sample is missing.
        """
        count = self.all_samples or max(self.samples, default=-1) + 1
        if missing := sorted(set(range(count)) - self.samples.keys()):
            raise CalibrationError(
                f"{len(missing)} of {count} samples are missing, the first is sample {missing[0]}; "
                "merge the observations of all shards"
            )

    def scales(self, method: str) -> Scales:
        """Returns the scales: ranges of all tensors, and magnitudes of the channels.

        Args:
            method: name of the method that chooses a range, one of `range_methods.METHODS`.

        Raises:
            UsageError: there is no such method.
        """
        choose_range, digest = range_method(method), hashlib.sha256()
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
                role: {name: choose_range(statistics[name]) for name in sorted(statistics)}
                for role, statistics in sorted(self.tensors.items())
            },
            channels=self._stored_channels(),
        )

    def save(self, path: Path, *, force: bool = True) -> None:
        """Writes the observations to one file, which is replaced as a whole, never in part.

        Raises:
            OutputExistsError: the file exists and `force` is false.
            InputError: something else than a file is there.
        """
        names = {role: list(statistics) for role, statistics in self.tensors.items()}
        about = _About(2, self.fingerprint, self.samples, names, self.all_samples)
        arrays = {_ABOUT: np.frombuffer(msgspec.json.encode(about), np.uint8)}
        for role, statistics in self.tensors.items():
            for number, tensor in enumerate(statistics.values()):
                arrays |= {f"{role}/{number}/{key}": a for key, a in tensor.arrays().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue(), force=force)

    def _merge_tensors(self, tensors: StatisticsByTensor) -> None:
        for role, statistics in tensors.items():
            merged = self.tensors.setdefault(role, {})
            for name, new in statistics.items():
                if name not in merged:
                    merged[name] = TensorStatistics(new.tensor, by_channel=new.channels is not None)
                merged[name].merge(new)

    def _stored_channels(self) -> dict[str, dict[str, StoredChannels]]:
        channels_by_role = {
            role: {
                name: StoredChannels.of(channels.summary())
                for name in sorted(statistics)
                if (channels := statistics[name].channels) is not None
            }
            for role, statistics in sorted(self.tensors.items())
        }
        return {role: channels for role, channels in channels_by_role.items() if channels}


def read_observations(path: Path) -> Observations:
    """Reads observations that `Observations.save` wrote.

    Raises:
        InputError: the file does not exist, or is no regular file.
        CalibrationError: the file does not hold observations, or is damaged.
    """
    check_file(path)
    try:
        file = read_npz(path)
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
    return Observations(about.origin, about.samples, tensors, about.all_samples)


def _described(fingerprint: Fingerprint) -> str:
    return f"{fingerprint.model} {fingerprint.variant} ({fingerprint.producer})"

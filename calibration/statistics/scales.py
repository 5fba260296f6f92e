"""Scales: the result of a calibration, stored as the readable `scales.json` of a variant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.statistics.channel_statistics import Channels as Channels
from hybrid_deploy.calibration.statistics.fingerprint import mismatch_with
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError
from hybrid_deploy.input_files import check_file

SCALES_FILE = "scales.json"

_LARGEST = float(np.finfo(np.float32).max)


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model, the samples and the method that scales come from.

    Attributes:
        model: name of the bundle's model.
        variant: name of the float variant that was run.
        graphs: SHA-256 of the variant's graph files, by role.
        weights: SHA-256 of the variant's weight files, by name.
        samples: number of samples that were run.
        samples_sha256: SHA-256 over the encoder inputs of all samples.
        steps: number of decoding steps over all samples.
        method: name of the method that chose the ranges.
        producer: the versions of hybrid-deploy and ONNX Runtime.
    """

    model: str
    variant: str
    graphs: dict[str, str]
    weights: dict[str, str]
    samples: int
    samples_sha256: str
    steps: int
    method: str
    producer: str


class StoredChannels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`Channels` as `scales.json` stores them, as decimals that read back to the same float32.

    Attributes:
        largest: largest magnitude of each channel.
        mean: mean magnitude of each channel.
    """

    largest: tuple[float, ...]
    mean: tuple[float, ...]

    @classmethod
    def of(cls, channels: Channels) -> StoredChannels:
        """Returns the stored form: for each float32, the shortest decimal that reads back to it."""
        return cls(*(tuple(float(str(x)) for x in a) for a in (channels.largest, channels.mean)))

    def arrays(self) -> Channels:
        """Returns the magnitudes as float32 arrays."""
        return Channels(np.array(self.largest, np.float32), np.array(self.mean, np.float32))


class Scales(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ranges and channel magnitudes of activations, by the role of the graph and the tensor.

    Attributes:
        provenance: the model, the samples and the method that the scales come from.
        ranges: the range of every tensor that may be quantized.
        channels: the channel magnitudes of tensors that a weight matrix is multiplied with.
    """

    provenance: Provenance
    ranges: dict[str, dict[str, Range]]
    channels: dict[str, dict[str, StoredChannels]]

    def of(self, role: GraphRole) -> dict[str, Range]:
        """Returns the ranges of one graph by tensor; empty if the graph never ran."""
        return self.ranges.get(role.value, {})

    def channels_of(self, role: GraphRole) -> dict[str, Channels]:
        """Returns the channel magnitudes of one graph by tensor; empty if the graph never ran."""
        channels = self.channels.get(role.value, {})
        return {name: stored.arrays() for name, stored in channels.items()}


def encode_scales(scales: Scales) -> bytes:
    """Returns the bytes of a `scales.json`: indented, with the channels of a tensor in one line."""
    without_channels = msgspec.structs.replace(scales, channels={})
    text = msgspec.json.format(msgspec.json.encode(without_channels), indent=1).decode()
    channels = {role: _block(2, _lines(tensors)) for role, tensors in scales.channels.items()}
    return (text.removesuffix("{}\n}") + _block(1, channels) + "\n}\n").encode()


def read_scales(path: Path) -> Scales:
    """Reads a `scales.json`.

    Raises:
        InputError: the file does not exist, or is no regular file.
        CalibrationError: the file does not hold scales, or was written by an older version.
    """
    check_file(path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scales)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} does not hold scales: {error}; calibrate again") from error


def check_scales(scales: Scales, bundle: Bundle, variant: str) -> None:
    """Checks that scales belong to a float variant, and can have been measured on it.

    Some tensors may be constant; if all of a graph are, then nobody has measured them.

    Raises:
        CalibrationError: they belong to another model, or to other weights; a range is not finite
            or ends below its begin; or no range of a graph has a width.
    """
    for role, ranges in scales.ranges.items():
        _check_ranges(role, ranges)
    if mismatch := mismatch_with(scales.provenance, bundle, variant):
        raise CalibrationError(
            f"the scales are of {mismatch}, not of {bundle.manifest.name} {variant} in "
            f"{bundle.folder}; calibrate this bundle"
        )


def _check_ranges(role: str, ranges: Mapping[str, Range]) -> None:
    for name, span in ranges.items():
        if not -_LARGEST <= span.low <= span.high <= _LARGEST:
            raise CalibrationError(
                f"the scales have {span.low:g} to {span.high:g} as the range of {name} in {role}, "
                "which no samples have; calibrate again"
            )
    if len(ranges) > 1 and all(span.low == span.high for span in ranges.values()):
        raise CalibrationError(
            f"the scales have no range with a width in {role}, as if every tensor were constant; "
            "calibrate again"
        )


def _lines(tensors: Mapping[str, StoredChannels]) -> dict[str, str]:
    return {name: msgspec.json.encode(numbers).decode() for name, numbers in tensors.items()}


def _block(depth: int, entries: Mapping[str, str]) -> str:
    """Returns a JSON object of encoded values, one entry per line."""
    lines = [
        f"{' ' * (depth + 1)}{msgspec.json.encode(key).decode()}: {value}"
        for key, value in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}" if lines else "{}"

"""What calibration learned, as the readable `scales.json` of a variant."""

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
from hybrid_deploy.errors import CalibrationError, InputError

SCALES_FILE = "scales.json"


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the ranges come from.

    Attributes:
        model: name of the bundle's model.
        variant: name of the float variant that was run.
        graphs: SHA-256 of its graph files, by role.
        weights: SHA-256 of its weight files, by name.
        samples: how many samples were run.
        samples_sha256: hash of the samples as the encoder got them.
        steps: how many decoding steps were run, over all samples.
        method: name of the observer.
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
    """`Channels` as a `scales.json` has them: the shortest decimals that give the float32."""

    largest: tuple[float, ...]
    mean: tuple[float, ...]

    @classmethod
    def of(cls, channels: Channels) -> StoredChannels:
        """Writes arrays down."""
        return cls(*(tuple(float(str(x)) for x in a) for a in (channels.largest, channels.mean)))

    def arrays(self) -> Channels:
        """Returns the arrays."""
        return Channels(np.array(self.largest, np.float32), np.array(self.mean, np.float32))


class Scales(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the activations held, by graph and tensor.

    Attributes:
        provenance: where it comes from.
        ranges: of every tensor that may be quantized.
        channels: of the tensors that meet the weight of a product.
    """

    provenance: Provenance
    ranges: dict[str, dict[str, Range]]
    channels: dict[str, dict[str, StoredChannels]]

    def of(self, role: GraphRole) -> dict[str, Range]:
        """Returns the ranges of one graph by tensor; empty if the graph was never run."""
        return self.ranges.get(role.value, {})

    def channels_of(self, role: GraphRole) -> dict[str, Channels]:
        """Returns the channels of one graph by tensor; empty if the graph was never run."""
        return {name: each.arrays() for name, each in self.channels.get(role.value, {}).items()}


def encode_scales(scales: Scales) -> bytes:
    """Returns the bytes of a `scales.json`: readable, the channels of a tensor in one line."""
    bare = msgspec.structs.replace(scales, channels={})
    text = msgspec.json.format(msgspec.json.encode(bare), indent=1).decode()
    rows = _block(1, {r: _block(2, _lines(tensors)) for r, tensors in scales.channels.items()})
    return (text.removesuffix("{}\n}") + rows + "\n}\n").encode()


def read_scales(path: Path) -> Scales:
    """Reads a `scales.json`.

    Raises:
        InputError: there is no such file.
        CalibrationError: it does not hold scales, or those of an older version.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scales)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} does not hold scales: {error}; calibrate again") from error


def check_scales(scales: Scales, bundle: Bundle, variant: str) -> None:
    """Checks that scales are those of a float variant.

    Raises:
        CalibrationError: they are of another model, or of other weights.
    """
    if other := mismatch_with(scales.provenance, bundle, variant):
        raise CalibrationError(
            f"the scales are of {other}, not of {bundle.manifest.name} {variant} in "
            f"{bundle.folder}; calibrate this bundle"
        )


def _lines(tensors: Mapping[str, StoredChannels]) -> dict[str, str]:
    return {name: msgspec.json.encode(numbers).decode() for name, numbers in tensors.items()}


def _block(depth: int, entries: Mapping[str, str]) -> str:
    """Writes a JSON object of encoded values, one a line."""
    lines = [
        f"{' ' * (depth + 1)}{msgspec.json.encode(k).decode()}: {v}" for k, v in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}" if lines else "{}"

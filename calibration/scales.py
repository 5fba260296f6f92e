"""What calibration learned, as the readable `scales.json` of a variant."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hybrid_deploy.calibration.ranges import Range
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, InputError

SCALES_FILE = "scales.json"


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the ranges come from.

    Attributes:
        model: name of the bundle's model.
        variant: name of the float variant that was run.
        graphs: SHA-256 of its graph files, by role.
        samples: how many samples were run.
        samples_sha256: hash of the samples as the encoder got them.
        steps: how many decoding steps were run, over all samples.
        method: name of the observer.
        producer: the versions of hybrid-deploy and ONNX Runtime.
    """

    model: str
    variant: str
    graphs: dict[str, str]
    samples: int
    samples_sha256: str
    steps: int
    method: str
    producer: str


class Scales(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ranges of the activations, by graph and tensor."""

    provenance: Provenance
    ranges: dict[str, dict[str, Range]]

    def of(self, role: GraphRole) -> dict[str, Range]:
        """Gives the ranges of one graph by tensor; empty if the graph was never run."""
        return self.ranges.get(role.value, {})


def encode_scales(scales: Scales) -> bytes:
    """Gives the bytes of a `scales.json`."""
    return msgspec.json.format(msgspec.json.encode(scales), indent=1) + b"\n"


def read_scales(path: Path) -> Scales:
    """Reads a `scales.json`.

    Raises:
        InputError: there is no such file.
        CalibrationError: it does not hold scales.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scales)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} does not hold scales: {error}; calibrate again") from error

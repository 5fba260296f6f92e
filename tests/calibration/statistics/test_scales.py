import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.statistics.channel_statistics import Channels
from hybrid_deploy.calibration.statistics.fingerprint import fingerprint_of
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import (
    Provenance,
    Scales,
    StoredChannels,
    check_scales,
    encode_scales,
    read_scales,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, InputError

CHANNELS = Channels(np.array([0.1, 3e-9, 7], np.float32), np.array([1 / 3, 0, 2**24], np.float32))
SCALES = Scales(
    provenance=Provenance(
        "digits", "fp32", {"step": "ab"}, {"w": "ef"}, 3, "cd", 12, "minmax", "x 1.0"
    ),
    ranges={"encoder": {"image": Range(-2.0, 0.10000000149011612)}},
    channels={
        "encoder": {"a": StoredChannels.of(CHANNELS), 'b "quoted"': StoredChannels.of(CHANNELS)},
        "step": {"c": StoredChannels.of(CHANNELS)},
    },
)


@pytest.mark.parametrize("scales", [SCALES, msgspec.structs.replace(SCALES, channels={})])
def test_round_trip(scales: Scales, tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    path.write_bytes(encode_scales(scales))
    assert read_scales(path) == scales
    assert path.read_text().count("\n") > 10, "readable: one entry per line"
    assert list(json.loads(path.read_text())) == ["provenance", "ranges", "channels"]


def test_channels_of_a_tensor_take_one_short_line() -> None:
    lines = encode_scales(SCALES).decode().splitlines()
    assert lines[-4:] == [
        '   "c": {"largest":[0.1,3e-9,7.0],"mean":[0.33333334,0.0,16777216.0]}',
        "  }",
        " }",
        "}",
    ]


def test_channels_are_restored_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    largest = np.exp(rng.uniform(-80, 80, 1000)).astype(np.float32)
    stored = StoredChannels.of(Channels(largest, largest))
    path = tmp_path / "scales.json"
    path.write_bytes(
        encode_scales(msgspec.structs.replace(SCALES, channels={"step": {"c": stored}}))
    )
    channels = read_scales(path).channels_of(GraphRole.STEP)["c"]
    assert channels.largest.dtype == np.float32
    np.testing.assert_array_equal(channels.largest, largest)


def test_graph_that_never_ran_has_no_ranges() -> None:
    assert SCALES.of(GraphRole.ENCODER) == SCALES.ranges["encoder"]
    assert SCALES.of(GraphRole.PREFILL) == {}
    assert SCALES.channels_of(GraphRole.PREFILL) == {}


def test_files_that_hold_no_scales(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_scales(tmp_path / "scales.json")
    (tmp_path / "scales.json").write_text('{"ranges": {}}')
    with pytest.raises(CalibrationError, match=r"does not hold scales: .*provenance"):
        read_scales(tmp_path / "scales.json")


def test_scales_of_an_older_version(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    old = json.loads(encode_scales(SCALES))
    del old["provenance"]["weights"]
    path.write_text(json.dumps(old))
    with pytest.raises(CalibrationError) as caught:
        read_scales(path)
    assert str(caught.value) == (
        f"{path} does not hold scales: Object missing required field `weights` - at "
        "`$.provenance`; calibrate again"
    )


def scales_of(bundle: Bundle, **changes: object) -> Scales:
    fingerprint = msgspec.structs.replace(fingerprint_of(bundle, "fp32"), **changes)
    provenance = Provenance(
        fingerprint.model,
        "fp32",
        fingerprint.graphs,
        fingerprint.weights,
        3,
        "cd",
        12,
        "minmax",
        "x 1.0",
    )
    return msgspec.structs.replace(SCALES, provenance=provenance)


def test_scales_of_the_same_files_pass(bundle: Bundle) -> None:
    check_scales(scales_of(bundle), bundle, "fp32")
    weights = fingerprint_of(bundle, "fp32").weights
    renamed = {f"fp32-2/{number}": sha256 for number, sha256 in enumerate(weights.values())}
    check_scales(scales_of(bundle, weights=renamed), bundle, "fp32")


@pytest.mark.parametrize(
    ("changes", "mismatch"),
    [
        ({"model": "lines"}, "lines"),
        ({"graphs": {"step": "ab"}}, "other graphs of tiny"),
        ({"weights": {"fp32/weights.bin": "ab"}}, "tiny with other weights"),
    ],
)
def test_scales_of_another_model(bundle: Bundle, changes: dict[str, object], mismatch: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        check_scales(scales_of(bundle, **changes), bundle, "fp32")
    assert str(caught.value) == (
        f"the scales are of another model ({mismatch}), not of tiny fp32 in {bundle.folder}; "
        "calibrate this bundle"
    )

from pathlib import Path

import pytest

from hybrid_deploy.calibration.ranges import Range
from hybrid_deploy.calibration.scales import Provenance, Scales, encode_scales, read_scales
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, InputError

SCALES = Scales(
    provenance=Provenance("digits", "fp32", {"step": "ab"}, 3, "cd", 12, "minmax", "x 1.0"),
    ranges={"encoder": {"image": Range(-2.0, 0.10000000149011612)}},
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "scales.json"
    path.write_bytes(encode_scales(SCALES))
    assert read_scales(path) == SCALES
    assert path.read_text().count("\n") > 10, "readable: one entry a line"


def test_graph_that_was_never_run_has_no_ranges() -> None:
    assert SCALES.of(GraphRole.ENCODER) == SCALES.ranges["encoder"]
    assert SCALES.of(GraphRole.PREFILL) == {}


def test_files_that_hold_no_scales(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_scales(tmp_path / "scales.json")
    (tmp_path / "scales.json").write_text('{"ranges": {}}')
    with pytest.raises(CalibrationError, match=r"does not hold scales: .*provenance"):
        read_scales(tmp_path / "scales.json")

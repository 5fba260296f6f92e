"""Tests of the table of builds on a tiny model: built graphs and unsupported precisions."""

from pathlib import Path

import pytest

from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.runtime.engines.cache import EngineCache
from tests.benchmarks.engine_builds.verdicts import TARGETS
from tests.benchmarks.quantization.builds import build_rows

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.mark.trt
def test_cells_state_the_built_graphs_or_the_missing_precision(
    own_path: Path, tmp_path: Path
) -> None:
    for floats in ("fp32", "fp16"):
        report = quantize_bundle(own_path, "int4-weights", floats=floats)
    names = ["int4-weights", "int4-weights-fp16"]
    cache = EngineCache(tmp_path / "engines")
    rows = build_rows(report.bundle, names, cache)
    assert [row["variant"] for row in rows] == names
    for row in rows:
        assert row["rtx:sm_75"] in ("no fp32", "no int4-weights")
        assert {row[target] for target in TARGETS[1:]} == {"3 built"}

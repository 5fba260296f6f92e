"""TensorRT-RTX parses and compiles the quantized graphs; compiling needs no GPU."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.files import load_graphs
from hybrid_deploy.target import parse_target
from tests.fakes.graph_runs import operators
from tests.fakes.size_limits import lift_size_limits

pytestmark = pytest.mark.trt
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_engines_are_built(
    bundle: Bundle, images: list[dict[str, NDArray[np.float32]]], precision: str, tmp_path: Path
) -> None:
    from hybrid_deploy.runtime.engines.build import build_engine
    from hybrid_deploy.runtime.engines.cache import EngineCache

    quantized = quantize_bundle(bundle.folder, precision, images).bundle
    cache = EngineCache(tmp_path / "engines")
    for role in (GraphRole.ENCODER, GraphRole.STEP):
        record = build_engine(quantized, precision, role, parse_target("rtx:sm_86"), cache=cache)
        assert record.size_bytes > 0


@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_the_second_look_at_the_likeliest_tokens_is_compiled(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floats: str
) -> None:
    from hybrid_deploy.runtime.engines.build import build_engine
    from hybrid_deploy.runtime.engines.cache import EngineCache

    lift_size_limits(monkeypatch)
    folder = bundle.folder
    quantized = quantize_bundle(
        folder, "int4-weights", floats=floats, name="int4", max_drop=100
    ).bundle
    step = load_graphs(quantized, "int4")[GraphRole.STEP]
    assert operators(step).items() >= {"TopK": 1, "ScatterElements": 1}.items()
    cache = EngineCache(tmp_path / "engines")
    for role in (GraphRole.PREFILL, GraphRole.STEP):
        record = build_engine(quantized, "int4", role, parse_target("rtx:sm_86"), cache=cache)
        assert record.size_bytes > 0

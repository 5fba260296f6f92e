"""Graphs compiled by TensorRT-RTX in a process of their own; no engine runs here."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.engines import build
from hybrid_deploy.runtime.engines.build import build_engine, build_engines
from hybrid_deploy.runtime.engines.cache import EngineCache, read_plan
from hybrid_deploy.runtime.engines.isolated_build import compile_isolated
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest
from hybrid_deploy.target import parse_target
from tests.runtime.engines.tiny_bundle_files import ROLES, model

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
SM86 = parse_target("rtx:sm_86")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"))


@pytest.mark.trt
@needs_rtx
@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_every_graph_builds_once_and_is_cached(
    bundle: Bundle, cache: EngineCache, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[str, int, int]] = []
    records = build_engines(
        bundle, variant, SM86, cache=cache, progress=lambda *r: reports.append(r)
    )
    assert [record.role for record in records] == list(ROLES)
    stages = [f"building {variant}/{role.value} for rtx:sm_86" for role in ROLES]
    assert reports == [(stage, done, 1) for stage in stages for done in (0, 1)]
    for record in records:
        assert not record.from_cache
        assert len(read_plan(record.path)) == record.size_bytes > 10_000
        assert 0 < record.seconds < 60
    monkeypatch.setattr(build, "compile_isolated", None)
    again = build_engines(bundle, variant, SM86, cache=cache)
    assert again == [replace(record, from_cache=True) for record in records]


@pytest.mark.trt
@needs_rtx
def test_refusal_quotes_tensorrt_and_does_not_change_later_builds(
    bundle: Bundle, cache: EngineCache, tmp_path: Path
) -> None:
    before = build_engine(bundle, "fp32", GraphRole.STEP, SM86, cache=cache)
    turing = parse_target("rtx:sm_75")
    with pytest.raises(BuildError) as caught:
        build_engine(bundle, "fp32", GraphRole.STEP, turing, cache=cache)
    message = str(caught.value)
    assert message.startswith("fp32/step: TensorRT did not build it for rtx:sm_75: Myelin (")
    assert message.endswith("for Turing (SM75): FP32 GEMM is not supported.)")
    # TensorRT-RTX 1.7 makes a larger plan after a refused one in the same process.
    after = build_engine(bundle, "fp32", GraphRole.STEP, SM86, cache=EngineCache(tmp_path))
    assert after.size_bytes == before.size_bytes


@pytest.mark.trt
@needs_rtx
def test_unreadable_graph_names_the_operator(tmp_path: Path) -> None:
    broken = model(GraphRole.STEP, "fp32")
    broken.graph.node[1].op_type, broken.graph.node[1].name = "Unheard", "first"
    onnx.save(broken, tmp_path / "step.onnx")
    request = PlanRequest("fp32/step", str(tmp_path / "step.onnx"), str(SM86), {})
    with pytest.raises(BuildError) as caught:
        compile_isolated(request)
    assert str(caught.value).startswith(
        "fp32/step: TensorRT cannot read the graph: Unheard first: "
    )


@pytest.mark.trt
@needs_rtx
def test_mask_that_tensorrt_drops_is_refused_before_building(tmp_path: Path) -> None:
    broken = model(GraphRole.STEP, "fp32")
    own = next(node for node in broken.graph.node if node.output[0] == "own")
    del own.input[3]
    onnx.save(broken, tmp_path / "step.onnx")
    request = PlanRequest("fp32/step", str(tmp_path / "step.onnx"), str(SM86), {})
    with pytest.raises(BuildError, match="has no mask in TensorRT"):
        compile_isolated(request)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "fp32/step: TensorRT crashed while building (SIGSEGV)"),
        (
            "kill -KILL $$",
            "fp32/step: the build was killed, most likely for lack of RAM; close other programs",
        ),
        ("echo no space >&2; exit 3", "fp32/step: the build process failed: no space"),
    ],
)
def test_killed_or_failed_build_process_is_a_build_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(BuildError) as caught:
        compile_isolated(PlanRequest("fp32/step", "x.onnx", "local", {}))
    assert str(caught.value) == message

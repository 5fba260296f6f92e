"""Requests, keys and records of builds, with a TensorRT that answers every request at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import Bundle, hash_files, open_bundle
from hybrid_deploy.bundle.manifest import DimRange, Precision
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError, BundleError, InputError
from hybrid_deploy.runtime.engines import build
from hybrid_deploy.runtime.engines.build import build_engine, build_engines
from hybrid_deploy.runtime.engines.cache import BuiltPlan, EngineCache
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest
from hybrid_deploy.runtime.tensorrt_builder.options import BuildOptions
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import MessageLog, TensorRT
from hybrid_deploy.target import Flavour, Target, parse_target
from tests.runtime.engines.tiny_bundle_files import ROLES

SM86 = parse_target("rtx:sm_86")

Compiled = list[PlanRequest]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """Replaces TensorRT and returns the list of its requests; each is answered at once."""
    requests: Compiled = []

    def compile_isolated(request: PlanRequest) -> BuiltPlan:
        requests.append(request)
        return BuiltPlan(b"plan", 2.5)

    vendor = TensorRT(Flavour.RTX, "1.6", module=None, log=cast(MessageLog, None))
    monkeypatch.setattr(build, "compile_isolated", compile_isolated)
    monkeypatch.setattr(build, "load_tensorrt", lambda flavour: vendor)
    return requests


def key(bundle: Bundle, folder: Path, target: Target = SM86) -> str:
    record = build_engine(bundle, "fp32", GraphRole.STEP, target, cache=EngineCache(folder))
    return record.key


def with_manifest(bundle: Bundle, **changes: object) -> Bundle:
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, **changes))


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        (
            Precision("int8-cpu", "int8-weights"),
            "its encoder is int8-cpu: it has unsigned activations, which TensorRT refuses; take "
            "int8",
        ),
        (
            Precision("fp16", "int4-cpu"),
            "its decoder is int4-cpu: it has operators of ONNX Runtime's CPU, which TensorRT "
            "refuses; take int4-weights",
        ),
    ],
)
def test_a_precision_for_a_cpu_is_refused_before_tensorrt_is_loaded(
    bundle: Bundle,
    tmp_path: Path,
    precision: Precision,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "load_tensorrt", None)
    variant = msgspec.structs.replace(bundle.variant("fp32"), precision=precision)
    small = with_manifest(bundle, variants={"small": variant})
    for role in ROLES:
        with pytest.raises(BuildError) as caught:
            build_engine(small, "small", role, SM86, cache=EngineCache(tmp_path))
        assert str(caught.value) == f"variant small is not for TensorRT; {reason}"


def test_request_carries_the_ranges_of_the_manifest(
    bundle: Bundle, compiled: Compiled, tmp_path: Path
) -> None:
    record = build_engine(bundle, "fp32", GraphRole.PREFILL, SM86, cache=EngineCache(tmp_path))
    assert (record.seconds, record.size_bytes, record.target) == (2.5, 4, "rtx:sm_86")
    (request,) = compiled
    assert os.path.isabs(request.path)
    assert request.optimization_profile["tokens"] == ((1, 1), (2, 4), (4, 8))
    assert request.optimization_profile["self_key_0"] == (
        (1, 2, 16, 16),
        (2, 2, 16, 16),
        (4, 2, 16, 16),
    )
    assert request.optimization_profile["cross_key_0"] == (
        (1, 2, 2, 16),
        (2, 2, 8, 16),
        (4, 2, 16, 16),
    )


def change_batch(bundle: Bundle) -> Bundle:
    return with_manifest(bundle, dims=bundle.manifest.dims | {"batch": DimRange(1, 2, 8)})


def change_file(name: str) -> Callable[[Bundle], Bundle]:
    def change(bundle: Bundle) -> Bundle:
        folder = bundle.folder.with_name("changed.bundle")
        shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(b"changed")
        files = bundle.manifest.files | {name: hash_files(folder)[name]}
        return Bundle(folder, msgspec.structs.replace(bundle.manifest, files=files))

    return change


@pytest.mark.parametrize(
    "change",
    [change_batch, change_file("fp32/step.onnx"), change_file("fp32/step.weights")],
    ids=["range", "graph", "weights"],
)
def test_key_depends_on_ranges_graph_and_weights(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, change: Callable[[Bundle], Bundle]
) -> None:
    assert key(bundle, tmp_path) == key(bundle, tmp_path)
    assert key(change(bundle), tmp_path) != key(bundle, tmp_path)
    assert len(compiled) == 2


def test_key_depends_on_the_target(bundle: Bundle, compiled: Compiled, tmp_path: Path) -> None:
    assert key(bundle, tmp_path) != key(bundle, tmp_path, parse_target("rtx:any"))


def test_key_ignores_other_variants_and_graphs(
    bundle: Bundle, compiled: Compiled, tmp_path: Path
) -> None:
    for name in ("fp16/step.weights", "fp32/encoder.onnx", "int8/step.onnx"):
        assert key(change_file(name)(bundle), tmp_path) == key(bundle, tmp_path)


def test_key_depends_on_the_version_of_tensorrt(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(bundle, tmp_path)
    newer = TensorRT(Flavour.RTX, "1.7", module=None, log=cast(MessageLog, None))
    monkeypatch.setattr(build, "load_tensorrt", lambda flavour: newer)
    assert key(bundle, tmp_path) != before


def test_key_and_request_depend_on_the_workspace(
    bundle: Bundle, compiled: Compiled, tmp_path: Path
) -> None:
    record = build_engine(
        bundle,
        "fp32",
        GraphRole.STEP,
        SM86,
        cache=EngineCache(tmp_path),
        options=BuildOptions(workspace_bytes=1000),
    )
    assert record.key != key(bundle, tmp_path)
    assert [request.options.workspace_bytes for request in compiled] == [1000, None]


def test_progress_names_the_last_build_of_the_same_graph(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key(bundle, tmp_path)
    newer = TensorRT(Flavour.RTX, "1.7", module=None, log=cast(MessageLog, None))
    monkeypatch.setattr(build, "load_tensorrt", lambda flavour: newer)
    reports: list[tuple[str, int, int]] = []
    cache = EngineCache(tmp_path)
    build_engine(
        bundle, "fp32", GraphRole.STEP, SM86, cache=cache, progress=lambda *r: reports.append(r)
    )
    stage = "building fp32/step for rtx:sm_86, last time 2 s by TensorRT 1.6, now 1.7"
    assert reports == [(stage, 0, 1), (stage, 1, 1)]


def test_local_engines_belong_to_one_gpu_model(
    bundle: Bundle, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for name in ("RTX 3090", "RTX 4090"):
        monkeypatch.setattr(build, "local_gpu", lambda name=name: LocalGpu(name, "8.6"))
        keys.add(key(bundle, tmp_path, parse_target("local")))
    assert len(keys) == 2


def test_local_target_without_a_gpu_has_a_remedy(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "local_gpu", lambda: None)
    with pytest.raises(BuildError) as caught:
        key(bundle, tmp_path, parse_target("local"))
    assert str(caught.value) == (
        "target local needs an NVIDIA GPU and this machine has none at hand; build for a named "
        "one: --target rtx:sm_86"
    )


def test_missing_range_is_named(bundle: Bundle, compiled: Compiled, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        key(with_manifest(bundle, dims={"batch": DimRange(1, 1, 1)}), tmp_path)
    assert str(caught.value) == ("fp32/step: the manifest has no range for memory; export it again")
    assert not compiled


def test_unknown_variant(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no variant 'int4'"):
        build_engines(bundle, "int4", SM86, cache=EngineCache(tmp_path))


def test_the_built_graph_is_the_verified_one(
    own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Compiled
) -> None:
    """The files are changed after the bundle was opened, and after the copy was made."""
    bundle = open_bundle(own_path)
    graph, weights = (own_path / "fp32" / name for name in ("step.onnx", "weights.bin"))
    original = {path.name: path.read_bytes() for path in (graph, weights)}
    built: dict[str, bytes] = {}

    def compile_isolated(request: PlanRequest) -> BuiltPlan:
        weights.write_bytes(b"another")
        built.update((path.name, path.read_bytes()) for path in Path(request.path).parent.iterdir())
        return BuiltPlan(b"plan", 2.5)

    monkeypatch.setattr(build, "compile_isolated", compile_isolated)
    key(bundle, tmp_path / "engines")
    assert built == original
    with pytest.raises(BundleError, match=r"fp32/weights\.bin was changed"):
        key(bundle, tmp_path / "no engine of these files yet")

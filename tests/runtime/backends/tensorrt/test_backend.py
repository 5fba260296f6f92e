"""The TensorRT backend up to the first call that needs a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError, MissingDependencyError, UsageError
from hybrid_deploy.runtime.backends import probing
from hybrid_deploy.runtime.backends.gpu import open_gpu
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from hybrid_deploy.runtime.backends.tensorrt import backend
from hybrid_deploy.runtime.backends.tensorrt.backend import load_on
from hybrid_deploy.runtime.backends.tensorrt.engine import TensorRTEngine
from hybrid_deploy.runtime.backends.tensorrt.engine_lookup import find_engine
from hybrid_deploy.runtime.engines import build
from hybrid_deploy.runtime.engines.build import build_engine
from hybrid_deploy.runtime.engines.cache import RECORD_FILE, BuiltPlan, EngineCache, read_plan
from hybrid_deploy.runtime.engines.cache_key import graph_identity
from hybrid_deploy.runtime.host.local_gpu import LocalGpu, local_gpu
from hybrid_deploy.runtime.tensorrt_builder.compile import SETTINGS
from hybrid_deploy.runtime.tensorrt_builder.options import BuildOptions
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import MessageLog, TensorRT, load_tensorrt
from hybrid_deploy.target import Flavour, parse_target
from tests.fakes.device import FakeDevice
from tests.fakes.two_stage_bundle import with_refine
from tests.runtime.backends.tensorrt.test_engine import Loaded

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
no_gpu = pytest.mark.skipif(local_gpu() is not None, reason="this machine has a GPU")
VENDOR = TensorRT(Flavour.RTX, "1.7", module=None, log=cast(MessageLog, None))
GPU = LocalGpu("RTX 3090", "8.6")


@no_gpu
def test_error_without_a_gpu(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError) as caught:
        load_backend("tensorrt", tiny_bundle, "fp32", BackendOptions())
    assert str(caught.value) == (
        "backend tensorrt needs an NVIDIA GPU with its driver, and this machine has none; "
        "`hybrid-deploy doctor` prints what is missing, --backend onnxruntime runs on the CPU"
    )


def test_error_without_cuda_core_names_the_extra(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_gpu, "local_gpu", lambda: GPU)
    monkeypatch.delitem(
        sys.modules, "hybrid_deploy.runtime.backends.gpu.cuda_device", raising=False
    )
    for name in ("cuda", "cuda.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as caught:
        load_backend("tensorrt", tiny_bundle, "fp32", BackendOptions())
    assert str(caught.value) == (
        "cuda-core is not installed; install it with: pip install 'hybrid-deploy[gpu]'"
    )


def test_cuda_core_that_does_not_load_is_not_reported_as_missing(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cuda" / "core").mkdir(parents=True)
    (tmp_path / "cuda" / "core" / "__init__.py").write_text("raise ImportError('wrong bindings')")
    monkeypatch.setattr(open_gpu, "local_gpu", lambda: GPU)
    for name in [n for n in sys.modules if n.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(
        sys.modules, "hybrid_deploy.runtime.backends.gpu.cuda_device", raising=False
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendError) as caught:
        load_backend("tensorrt", tiny_bundle, "fp32", BackendOptions())
    assert str(caught.value) == (
        "cuda-core is installed but does not load: wrong bindings; upgrade it and cuda-bindings "
        "together"
    )
    sys.modules.pop("cuda", None)


def test_only_the_cpu_backend_is_usable_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "local_gpu", lambda: None)
    assert probing.usable_backends() == ("onnxruntime",)
    monkeypatch.setattr(probing, "local_gpu", lambda: GPU)
    assert probing.usable_backends() == ("onnxruntime", "onnxruntime-cuda", "tensorrt")


def settings(bundle: Bundle, **changes: object) -> dict[str, object]:
    return {**SETTINGS, "feeds_itself": bundle.manifest.capacity, **changes}


def record_of(bundle: Bundle, **changes: object) -> dict[str, object]:
    return {
        **graph_identity(bundle, bundle.graph("fp32", GraphRole.STEP)),
        "flavour": "rtx",
        "version": "1.7",
        "platform": sysconfig.get_platform(),
        "target": "local",
        "gpu": [GPU.name, GPU.capability],
        "profile": {},
        "settings": settings(bundle),
        **changes,
    }


def add_engine(cache: EngineCache, shaped_by: dict[str, object]) -> Path:
    return cache.get_or_build(shaped_by, lambda: BuiltPlan(b"plan", 1.0)).path


def find_step(cache: EngineCache, bundle: Bundle) -> Path:
    return find_engine(cache, bundle, "fp32", GraphRole.STEP, VENDOR, GPU)


def test_engine_of_this_gpu_is_found_with_any_optimization_profile(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path)
    plan = add_engine(cache, record_of(tiny_bundle, profile={"token": [[1], [2], [3]]}))
    assert find_step(cache, tiny_bundle) == plan
    assert read_plan(plan, "1.7") == b"plan"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"gpu": ["RTX 3080", "8.6"]}, False),
        ({"version": "1.6"}, False),
        ({"version": "1.8"}, False),
        ({"flavour": "tensorrt"}, False),
        ({"platform": "linux-riscv64"}, False),
        ({"graph": "0" * 64}, False),
        ({"weights": {}}, False),
        ({"settings": {"recipe": 0}}, False),
        ({"settings": {"feeds_itself": None}}, False),
        ({"settings": {"feeds_itself": 1}}, False),
        ({"settings": {"workspace_bytes": 1000}}, True),
        ({"version": "1.6", "settings": {"version_compatible": True}}, True),
        ({"version": "1.8", "settings": {"version_compatible": True}}, False),
        ({"gpu": None, "settings": {"hardware_compatible": True}}, True),
        ({"target": "rtx:sm_86", "gpu": None}, True),
        ({"target": "rtx:sm_89", "gpu": None}, False),
        ({"target": "rtx:any", "gpu": None}, True),
    ],
)
def test_only_engines_that_run_here_are_found(
    tiny_bundle: Bundle, tmp_path: Path, change: dict[str, object], found: bool
) -> None:
    cache = EngineCache(tmp_path)
    if isinstance(changed := change.get("settings"), dict):
        change = change | {"settings": settings(tiny_bundle, **changed)}
    plan = add_engine(cache, record_of(tiny_bundle, **change))
    if found:
        assert find_step(cache, tiny_bundle) == plan
        return
    with pytest.raises(BackendError) as caught:
        find_step(cache, tiny_bundle)
    assert str(caught.value) == (
        "no engine of fp32/step for RTX 3090 (compute capability 8.6) by rtx 1.7 is in "
        f"{tmp_path}; build it: hybrid-deploy build {tiny_bundle.folder} --target local "
        "--variant fp32"
    )


def test_engine_for_this_gpu_comes_before_the_others(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    own = add_engine(cache, record_of(tiny_bundle))
    add_engine(cache, record_of(tiny_bundle, target="rtx:sm_86", gpu=None))
    add_engine(cache, record_of(tiny_bundle, target="rtx:any", gpu=None))
    assert find_step(cache, tiny_bundle) == own


def test_last_used_engine_is_taken(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    plans = [
        add_engine(cache, record_of(tiny_bundle, profile={"token": [[n], [n], [n]]}))
        for n in (1, 2)
    ]
    for used in (plans[0], plans[1], plans[0]):
        for plan in plans:
            if plan != used:
                os.utime(plan.with_name(RECORD_FILE), (1000, 1000))
        read_plan(used)
        assert find_step(cache, tiny_bundle) == used


@pytest.mark.parametrize("role", [GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP])
@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(),
        BuildOptions(workspace_bytes=1 << 20),
        BuildOptions(hardware_compatible=True, version_compatible=True),
    ],
)
def test_engine_of_a_local_build_is_found(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    role: GraphRole,
    options: BuildOptions,
) -> None:
    vendor = dataclasses.replace(VENDOR, flavour=Flavour.TENSORRT, version="10.16.1")
    monkeypatch.setattr(build, "local_gpu", lambda: GPU)
    monkeypatch.setattr(build, "load_tensorrt", lambda flavour: vendor)
    monkeypatch.setattr(build, "compile_isolated", lambda request: BuiltPlan(b"plan", 1.0))
    cache, target = EngineCache(tmp_path), parse_target("local")
    record = build_engine(tiny_bundle, "fp32", role, target, cache=cache, options=options)
    assert find_engine(cache, tiny_bundle, "fp32", role, vendor, GPU) == record.path
    assert read_plan(record.path, vendor.version, flavour=vendor.flavour, gpu=GPU) == b"plan"


def test_approximate_logits_are_refused(tiny_bundle: Bundle) -> None:
    bundle = with_refine(tiny_bundle)
    with pytest.raises(UsageError, match=r"variant fp32 .* or another variant with tensorrt$"):
        load_on(FakeDevice(), bundle, "fp32")


@pytest.mark.parametrize("compatible", [False, True])
def test_only_a_version_compatible_engine_may_run_its_own_host_code(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compatible: bool
) -> None:
    loaded = Loaded()
    monkeypatch.setattr(backend, "required_gpu", lambda name: GPU)
    monkeypatch.setattr(backend, "load_tensorrt", lambda flavour: loaded.vendor)
    cache = EngineCache(tmp_path)
    for role, graph in tiny_bundle.loop_graphs("fp32").items():
        capacity = None if role is GraphRole.ENCODER else tiny_bundle.manifest.capacity
        engine_settings = settings(
            tiny_bundle, feeds_itself=capacity, version_compatible=compatible
        )
        shaped_by = record_of(tiny_bundle, settings=engine_settings) | graph_identity(
            tiny_bundle, graph
        )
        cache.get_or_build(shaped_by, partial(BuiltPlan, role.value.encode(), 1.0))
    load_on(loaded.device, tiny_bundle, "fp32", cache=cache)
    assert [allowed for _, allowed in loaded.log.loaded] == [compatible] * 3


def test_damaged_engine_is_not_found(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    add_engine(cache, record_of(tiny_bundle)).write_bytes(b"pla")
    with pytest.raises(BackendError, match="build it: hybrid-deploy build"):
        find_step(cache, tiny_bundle)


@pytest.mark.trt
@needs_rtx
@no_gpu
def test_real_plan_fails_only_at_the_missing_driver(tiny_bundle: Bundle, tmp_path: Path) -> None:
    vendor, cache = load_tensorrt(Flavour.RTX), EngineCache(tmp_path)
    target = parse_target("rtx:sm_86")
    record = build_engine(tiny_bundle, "fp32", GraphRole.STEP, target, cache=cache)
    plan = find_engine(cache, tiny_bundle, "fp32", GraphRole.STEP, vendor, GPU)
    assert plan == record.path
    with pytest.raises(BackendError) as caught:
        TensorRTEngine(vendor, read_plan(plan, vendor.version), "fp32/step", FakeDevice())
    message = f"TensorRT {vendor.version} does not load the engine of fp32/step on fake: "
    assert str(caught.value).startswith(message)
    assert "CUDA" in str(caught.value)


@pytest.mark.trt
@needs_rtx
def test_tensorrt_rtx_has_every_method_that_the_backend_calls() -> None:
    trt = load_tensorrt(Flavour.RTX).module
    called = {
        "ICudaEngine": (
            "create_execution_context create_runtime_config get_aliased_input_tensor "
            "get_tensor_dtype get_tensor_location get_tensor_mode get_tensor_name "
            "get_tensor_profile_shape get_tensor_shape num_io_tensors"
        ),
        "IExecutionContext": (
            "active_optimization_profile execute_async_v3 get_tensor_shape is_stream_capturable "
            "set_input_shape set_optimization_profile_async set_tensor_address"
        ),
        "IRuntimeConfig": "dynamic_shapes_kernel_specialization_strategy",
    }
    for kind, names in called.items():
        assert [n for n in names.split() if not hasattr(getattr(trt, kind), n)] == []
    assert trt.TensorIOMode.INPUT.name == "INPUT"
    assert trt.TensorLocation.DEVICE.name == "DEVICE"

"""The two forms of cache writes: versions that support them, and equal tokens from both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.manifest import TensorSpec
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.runtime.engines.build import build_engine
from hybrid_deploy.runtime.engines.cache import EngineCache
from hybrid_deploy.runtime.session.session import load_session
from hybrid_deploy.runtime.tensorrt_builder.cache_write_support import (
    CacheWrite,
    cache_write_of,
    check_cache_write,
    supported_cache_writes,
)
from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary
from hybrid_deploy.target import Flavour, parse_target

NATIVE, SCATTER = CacheWrite.NATIVE, CacheWrite.SCATTER


@pytest.fixture(scope="module")
def scatter_path(tiny_export: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle whose cache writes are ScatterElements."""
    path = tmp_path_factory.mktemp("scatter") / "tiny.bundle"
    form = dataclasses.replace(tiny_export.form, opset=18)
    run_export(dataclasses.replace(tiny_export, form=form), path)
    return path


@pytest.mark.parametrize(
    ("flavour", "version", "forms"),
    [
        (Flavour.TENSORRT, "8.6.1", set()),
        (Flavour.TENSORRT, "10.3.0.30", {SCATTER}),
        (Flavour.TENSORRT, "10.9.0", {SCATTER}),
        (Flavour.TENSORRT, "10.14.1", {SCATTER}),
        (Flavour.TENSORRT, "10.15.1", {SCATTER, NATIVE}),
        (Flavour.TENSORRT, "11.4.1", {SCATTER, NATIVE}),
        (Flavour.RTX, "1.3.0", set()),
        (Flavour.RTX, "1.4.0.76", {SCATTER, NATIVE}),
        (Flavour.RTX, "1.10.0", {SCATTER, NATIVE}),
    ],
)
def test_forms_that_each_version_supports(
    flavour: Flavour, version: str, forms: set[CacheWrite]
) -> None:
    assert supported_cache_writes(flavour, version) == forms


def test_native_caches_are_refused_before_10_15_with_a_remedy(tiny_bundle: Bundle) -> None:
    variant = tiny_bundle.variant("fp32")
    check_cache_write(variant, "fp32/step", Flavour.TENSORRT, "10.15.1")
    with pytest.raises(BuildError) as caught:
        check_cache_write(variant, "fp32/step", Flavour.TENSORRT, "10.3.0")
    assert str(caught.value) == (
        "fp32/step: TensorRT 10.3.0 cannot write caches in place, as this variant of opset 24 "
        "does; export the model with --opset 21, or install 10.15 or newer"
    )
    scattered = msgspec.structs.replace(variant, opset=18)
    check_cache_write(scattered, "fp32/step", Flavour.TENSORRT, "10.3.0")


def test_version_that_is_too_old_for_both_forms(tiny_bundle: Bundle) -> None:
    with pytest.raises(BuildError) as caught:
        check_cache_write(tiny_bundle.variant("fp32"), "fp32/step", Flavour.TENSORRT, "8.6.1")
    assert str(caught.value) == "fp32/step: TensorRT 8.6.1 is too old; install 10.3 or newer"


def test_recurrent_states_need_no_cache_writes(tiny_bundle: Bundle) -> None:
    variant = tiny_bundle.variant("fp32")
    state = TensorSpec("recurrent_0_next", "float", ("batch", 4))
    step = msgspec.structs.replace(variant.step, outputs=(variant.step.outputs[0], state))
    recurrent = msgspec.structs.replace(variant, step=step)
    assert cache_write_of(recurrent) is None
    check_cache_write(recurrent, "fp32/step", Flavour.TENSORRT, "10.3.0")


def test_both_forms_give_the_same_tokens(tiny_path: Path, scatter_path: Path) -> None:
    images = np.random.default_rng(5).standard_normal((4, 1, 8, 40)).astype(np.float32)
    native, scatter = (load_session(path) for path in (tiny_path, scatter_path))
    assert cache_write_of(native.bundle.variant("fp32")) is NATIVE
    assert cache_write_of(scatter.bundle.variant("fp32")) is SCATTER
    tokens = [
        [row.tokens for row in session.run_arrays({"image": images})[0]]
        for session in (native, scatter)
    ]
    assert tokens[0] == tokens[1]
    assert len({row for row in tokens[0]}) > 1


@pytest.mark.trt
@pytest.mark.parametrize("role", [GraphRole.PREFILL, GraphRole.STEP])
def test_both_forms_build_and_name_their_caches(
    tiny_path: Path, scatter_path: Path, role: GraphRole, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    cache, sm86 = EngineCache(tmp_path), parse_target("rtx:sm_86")
    native, scatter = (
        _layers(build_engine(open_bundle(path), "fp32", role, sm86, cache=cache).layers)
        for path in (tiny_path, scatter_path)
    )
    names = ("self_key_0", "self_value_0")
    assert (native.caches_in_place, native.caches_copied) == (names, ())
    assert (scatter.caches_in_place, scatter.caches_copied) == ((), names)
    assert native.parsed["KV_CACHE_UPDATE"] == 2 and "SCATTER" not in native.parsed
    assert scatter.parsed["SCATTER"] == 2 and "KV_CACHE_UPDATE" not in scatter.parsed
    assert (native.attentions, scatter.attentions) == (2, 0)


def _layers(layers: LayerSummary | None) -> LayerSummary:
    assert layers is not None
    return layers


@pytest.mark.trt
def test_opset_21_builds_quantized_weights_with_two_buffers_per_cache(
    tiny_export: ExportJob, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    form = dataclasses.replace(tiny_export.form, opset=21)
    run_export(dataclasses.replace(tiny_export, form=form), tmp_path / "tiny.bundle")
    quantized = quantize_bundle(tmp_path / "tiny.bundle", "int4-weights").bundle
    check_cache_write(quantized.variant("int4-weights"), "step", Flavour.TENSORRT, "10.3.0")
    cache, sm86 = EngineCache(tmp_path / "engines"), parse_target("rtx:sm_86")
    record = build_engine(quantized, "int4-weights", GraphRole.STEP, sm86, cache=cache)
    layers = _layers(record.layers)
    assert layers.caches_copied == ("self_key_0", "self_value_0")
    assert any("int4" in kernels.types for kernels in layers.kernels) or layers.parsed["DEQUANTIZE"]

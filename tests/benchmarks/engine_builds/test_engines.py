"""Tests of the table of engines: one variant of a tiny model, expected and unexpected verdicts."""

from pathlib import Path

import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.runtime.engines.cache import EngineCache
from tests.benchmarks.engine_builds import verdicts
from tests.benchmarks.engine_builds.variants import make_variants
from tests.benchmarks.engine_builds.verdicts import Row, is_unexpected, verdict_rows

pytestmark = pytest.mark.trt
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"))


def row(path: Path, variant: str, target: str, cache: EngineCache) -> Row:
    (single,) = verdict_rows(open_bundle(path), [variant], [target], cache)
    return single


def test_a_variant_builds_only_for_gpus_with_its_precision(
    own_path: Path, cache: EngineCache
) -> None:
    samples = own_path.parent / "samples"
    samples.mkdir()
    image = np.random.default_rng(0).standard_normal((1, 1, 8, 24)).astype(np.float32)
    np.savez(samples / "one.npz", image=image)
    assert make_variants(own_path, samples, ["int8"]) == ["int8", "int8-fp16"]
    built = row(own_path, "int8-fp16", "rtx:sm_75", cache)
    assert (built["verdict"], built["opset"], built["caches"]) == ("builds", 24, "native")
    assert float(str(built["mb"])) > 1 and float(str(built["seconds"])) > 0
    refused = row(own_path, "int8", "rtx:sm_75", cache)
    assert refused["verdict"] == "refused, as expected: no fp32 (encoder, prefill, step)"
    assert not is_unexpected(built) and not is_unexpected(refused)


def test_verdicts_against_the_expectation_are_unexpected(
    tiny_path: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "expected_refusal", lambda *_: "no fp32")
    builds = row(tiny_path, "fp32", "rtx:sm_86", cache)
    assert builds["verdict"] == "BUILDS unexpectedly: device_support states no fp32"
    monkeypatch.setattr(verdicts, "expected_refusal", lambda *_: None)
    refused = row(tiny_path, "fp32", "rtx:sm_75", cache)
    assert str(refused["verdict"]).startswith("REFUSED unexpectedly: fp32/encoder: TensorRT did")
    assert refused["mb"] is None
    assert is_unexpected(builds) and is_unexpected(refused)

"""Observations of a bundle: cached between runs, merged from shards, refused for other models."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, seal_bundle
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.calibration.calibrate import (
    calibrate,
    merge_files,
    observations_cache_file,
    observe_bundle,
)
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.observation.observations import read_observations
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.samples.samples import samples_of
from hybrid_deploy.calibration.statistics.scales import check_scales, encode_scales
from hybrid_deploy.errors import CalibrationError, UsageError

Images = list[dict[str, NDArray[np.float32]]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_one_shot_iterator_and_its_progress(bundle: Bundle, images: Images) -> None:
    progress: list[tuple[str, int, int]] = []
    report = observe_bundle(
        bundle.folder, (image for image in images), progress=lambda *stage: progress.append(stage)
    )
    assert progress == [("calibrate", done, 3) for done in range(4)]
    scales = report.observations.scales("minmax")
    assert scales.provenance.samples == 3
    check_scales(scales, bundle, "fp32")


def test_another_method_decodes_no_sample_again(
    bundle: Bundle, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, samples = prepared_graphs(bundle, "fp32"), samples_of(bundle, images)
    first = calibrate(bundle, "fp32", graphs, samples, "minmax")
    monkeypatch.setattr(ObservedModel, "start", lambda *_: pytest.fail("decoded again"))
    assert calibrate(bundle, "fp32", graphs, samples, "minmax") == first
    assert calibrate(bundle, "fp32", graphs, samples, "mse") != first


def test_merged_shards_equal_one_run(bundle: Bundle, images: Images, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.npz" for number in range(2)]
    for number, file in enumerate(files):
        observe_bundle(bundle.folder, images, shard=(number, 2)).observations.save(file)
    all_samples = observe_bundle(bundle.folder, images).observations
    merged = merge_files(bundle.folder, files[::-1]).observations
    for method in ("minmax", "entropy"):
        assert encode_scales(merged.scales(method)) == encode_scales(all_samples.scales(method))


@pytest.mark.parametrize("shards", [{0}, {1}, {0, 1}, {1, 2}])
def test_a_missing_shard_is_no_calibration(
    bundle: Bundle, images: Images, tmp_path: Path, shards: set[int]
) -> None:
    files = [tmp_path / f"{number}.npz" for number in shards]
    for number, file in zip(shards, files, strict=True):
        observe_bundle(bundle.folder, images, shard=(number, 3)).observations.save(file)
    with pytest.raises(CalibrationError, match=r"of 3 samples are missing, the first is sample"):
        merge_files(bundle.folder, files)


def test_shards_of_other_samples_cannot_be_merged(
    bundle: Bundle, images: Images, tmp_path: Path
) -> None:
    files = [tmp_path / "0.npz", tmp_path / "1.npz"]
    observe_bundle(bundle.folder, images, shard=(0, 2)).observations.save(files[0])
    observe_bundle(bundle.folder, images[:2], shard=(1, 2)).observations.save(files[1])
    with pytest.raises(CalibrationError, match="shards of 3 and 2 samples cannot be merged"):
        merge_files(bundle.folder, files)


def test_each_shard_has_its_own_cache_file(bundle: Bundle, images: Images, cache: Path) -> None:
    for number in range(2):
        observe_bundle(bundle.folder, images, shard=(number, 2))
    cached = [sorted(read_observations(file).samples) for file in cache.rglob("*.npz")]
    assert sorted(cached) == [[0, 2], [1]]


def test_shards_that_cannot_be_merged(bundle: Bundle, images: Images, tmp_path: Path) -> None:
    file = tmp_path / "part.npz"
    shard = observe_bundle(bundle.folder, images, shard=(0, 2)).observations
    shard.save(file)
    with pytest.raises(CalibrationError) as caught:
        merge_files(bundle.folder, [file, file])
    assert str(caught.value) == "sample 0 is in both observations; give each once"
    shard.fingerprint = msgspec.structs.replace(
        shard.fingerprint, weights={"fp32/weights.bin": "ab"}
    )
    shard.save(file)
    with pytest.raises(CalibrationError) as caught:
        merge_files(bundle.folder, [file])
    assert str(caught.value) == (
        f"{file} holds observations of another model (tiny with other weights), not of tiny fp32 "
        f"in {bundle.folder}; collect them from this bundle"
    )


def test_a_damaged_cache_file_is_deleted(bundle: Bundle, images: Images) -> None:
    samples = samples_of(bundle, images)
    cache_file = observations_cache_file(bundle, "fp32", samples)
    assert cache_file is not None
    cache_file.write_bytes(b"damaged")
    assert observations_cache_file(bundle, "fp32", samples) == cache_file
    assert not cache_file.exists()


def test_a_cache_folder_that_cannot_be_made(
    bundle: Bundle, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert observations_cache_file(bundle, "fp32", samples_of(bundle, images)) is None
    assert len(observe_bundle(bundle.folder, images).observations.samples) == 3


def test_only_float_variants_are_observed(bundle: Bundle, images: Images) -> None:
    float_variant = bundle.manifest.variants["fp32"]
    precision = msgspec.structs.replace(float_variant.precision, encoder="int8")
    variants = {"int8": msgspec.structs.replace(float_variant, precision=precision)}
    manifest = msgspec.structs.replace(bundle.manifest, variants=variants)
    seal_bundle(bundle.folder, manifest)
    with pytest.raises(UsageError) as caught:
        observe_bundle(bundle.folder, images, variant="int8")
    assert str(caught.value) == (
        f"variant int8 of {bundle.folder} is already quantized (encoder int8, decoder fp32); "
        "quantize fp32"
    )

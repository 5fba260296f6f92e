"""Calibration: turns a bundle and samples into observations, and these into scales.

Observations are cached on disk, so another run or another method decodes no sample again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.cache_dir import cache_folder
from hybrid_deploy.calibration.graphs.float_graphs import (
    check_float_variant,
    prepared_graphs,
)
from hybrid_deploy.calibration.observation.collect import ALL_SAMPLES, observe_samples
from hybrid_deploy.calibration.observation.observations import Observations, read_observations
from hybrid_deploy.calibration.samples.samples import (
    Samples,
    SampleSource,
    SkippedSample,
    samples_of,
)
from hybrid_deploy.calibration.statistics.fingerprint import fingerprint_of, mismatch_with
from hybrid_deploy.calibration.statistics.scales import Scales
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole
from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.progress import Progress, silent


@dataclass(frozen=True)
class ObservationReport:
    """The result of observing a bundle's activations.

    Attributes:
        observations: statistics of the activations over all samples, or over those of a shard.
        skipped: samples that could not be used and were left out.
    """

    observations: Observations
    skipped: tuple[SkippedSample, ...] = ()


def observe_bundle(
    path: str | Path,
    source: SampleSource | None = None,
    *,
    golden: bool = False,
    skip_bad: bool = False,
    shard: tuple[int, int] = ALL_SAMPLES,
    variant: str = FLOAT_VARIANT,
    progress: Progress = silent,
) -> ObservationReport:
    """Decodes samples with a float variant of a bundle and returns statistics of its activations.

    The observations are cached on disk: a run that ended early continues there.

    Args:
        path: the bundle's folder.
        source: the samples, as `samples_of` takes them.
        golden: whether to take the bundle's golden samples too.
        skip_bad: whether to leave out samples that cannot be used.
        shard: (k, n) decodes only the k-th of every n samples, k from 0.
        variant: name of the float32 variant.
        progress: called with the number of finished samples, as stage `calibrate`.

    Raises:
        UsageError: the variant is not float32.
        InputError: the bundle, the variant or a sample is missing or cannot be used.
        CalibrationError: there is no sample, or an activation is NaN or infinite.
    """
    bundle = open_bundle(Path(path))
    check_float_variant(bundle, variant)
    samples = samples_of(bundle, source, golden=golden, skip_bad=skip_bad, variant=variant)
    graphs = prepared_graphs(bundle, variant)
    observations = observe(bundle, variant, graphs, samples, shard=shard, progress=progress)
    return ObservationReport(observations, samples.skipped)


def merge_files(
    path: str | Path, files: Sequence[Path], *, variant: str = FLOAT_VARIANT
) -> ObservationReport:
    """Merges the observations that runs over shards of the samples have saved.

    Args:
        path: the bundle's folder.
        files: files of observations, at least one.
        variant: name of the float32 variant that was observed.

    Raises:
        InputError: the bundle or a file does not exist.
        CalibrationError: a file holds no observations, belongs to another model, was written by
            other versions than the first file, or has a sample that another file has; or a shard
            is missing.
    """
    bundle = open_bundle(Path(path))
    merged, *others = [_read_checked(file, bundle, variant) for file in files]
    for observations in others:
        merged.merge(observations)
    merged.check_complete()
    return ObservationReport(merged)


def calibrate(
    bundle: Bundle,
    variant: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    method: str,
    progress: Progress = silent,
) -> Scales:
    """Returns the scales of a float variant.

    Args:
        bundle: the bundle that has the variant.
        variant: name of the float variant.
        graphs: the variant's graphs, as `prepared_graphs` returns them.
        samples: the samples to decode.
        method: name of the method that chooses ranges, one of `range_methods.METHODS`.
        progress: called with the number of finished samples, as stage `calibrate`.

    Raises:
        UsageError: there is no such method.
        InputError: a sample cannot be used.
        CalibrationError: an activation is NaN or infinite.
    """
    return observe(bundle, variant, graphs, samples, progress=progress).scales(method)


def observe(
    bundle: Bundle,
    variant: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    *,
    shard: tuple[int, int] = ALL_SAMPLES,
    progress: Progress = silent,
) -> Observations:
    """Returns the observations of samples; decodes only those that the cache does not have.

    Args:
        bundle: the bundle that has the variant.
        variant: name of the float variant.
        graphs: the variant's graphs, as `prepared_graphs` returns them.
        samples: the samples to decode.
        shard: (k, n) decodes only the k-th of every n samples, k from 0.
        progress: called with the number of finished samples, as stage `calibrate`.

    Raises:
        InputError: a sample cannot be used.
        CalibrationError: an activation is NaN or infinite.
    """
    state = observations_cache_file(bundle, variant, samples, shard)
    return observe_samples(
        bundle, variant, graphs, samples, state=state, shard=shard, progress=progress
    )


def observations_cache_file(
    bundle: Bundle, variant: str, samples: Samples, shard: tuple[int, int] = ALL_SAMPLES
) -> Path | None:
    """Returns the path of the cached observations of these samples.

    The file need not exist; a damaged one is deleted. The path is None if the cache folder cannot
    be written to.
    """
    key = msgspec.json.encode([fingerprint_of(bundle, variant), samples.sha256, shard])
    path = cache_folder("calibration") / f"{hashlib.sha256(key).hexdigest()}.npz"
    try:
        read_observations(path)
    except CalibrationError:
        path.unlink(missing_ok=True)  # damaged, so that the next run writes it again
    except InputError:
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path.parent, os.W_OK) else None


def _read_checked(file: Path, bundle: Bundle, variant: str) -> Observations:
    """Reads observations and checks that they belong to the variant."""
    observations = read_observations(file)
    if mismatch := mismatch_with(observations.fingerprint, bundle, variant):
        raise CalibrationError(
            f"{file} holds observations of {mismatch}, not of {bundle.manifest.name} {variant} in "
            f"{bundle.folder}; collect them from this bundle"
        )
    return observations

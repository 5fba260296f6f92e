"""From a bundle and samples to scales: opened, observed, kept for the next run, merged."""

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
    check_float,
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
    """What was seen of a bundle's activations.

    Attributes:
        observations: over all samples, or over those of a shard.
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
    """Decodes samples with a float variant of a bundle and gives what its activations held.

    What was seen is kept on disk: a run that ended early goes on where it was.

    Args:
        path: the bundle's folder.
        source: samples, as `samples_of` takes them.
        golden: take the bundle's golden samples too.
        skip_bad: leave out samples that cannot be used.
        shard: (k, n) decodes the k-th of every n samples, k from 0.
        variant: name of the float32 variant.
        progress: called with the number of samples done, as stage `calibrate`.

    Raises:
        UsageError: the variant is no float one.
        InputError: the bundle, the variant or a sample is missing or cannot be used.
        CalibrationError: there is no sample, or an activation is NaN or infinite.
    """
    bundle = open_bundle(Path(path))
    check_float(bundle, variant)
    samples = samples_of(bundle, source, golden=golden, skip_bad=skip_bad, variant=variant)
    graphs = prepared_graphs(bundle, variant)
    seen = observe(bundle, variant, graphs, samples, shard=shard, progress=progress)
    return ObservationReport(seen, samples.skipped)


def merge_files(
    path: str | Path, files: Sequence[Path], *, variant: str = FLOAT_VARIANT
) -> ObservationReport:
    """Adds up what runs over shards of the samples have saved.

    Raises:
        InputError: the bundle or a file does not exist.
        CalibrationError: a file holds no observations, those of another model or of other
            versions than the others, or samples that another file holds.
    """
    bundle = open_bundle(Path(path))
    found = [_of_bundle(file, bundle, variant) for file in files]
    for other in found[1:]:
        found[0].merge(other)
    return ObservationReport(found[0])


def calibrate(
    bundle: Bundle,
    variant: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    method: str,
    progress: Progress = silent,
) -> Scales:
    """Returns the scales of a float variant; see `observe` for what is kept.

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
    """Decodes samples, or takes up what an earlier run over the same ones has kept.

    Args:
        bundle: that the variant is of.
        variant: name of the float variant.
        graphs: of the variant, as `prepared_graphs` gives them.
        samples: what to decode.
        shard: (k, n) decodes the k-th of every n samples, k from 0.
        progress: called with the number of samples done, as stage `calibrate`.
    """
    state = observations_cache_file(bundle, variant, samples, shard)
    return observe_samples(
        bundle, variant, graphs, samples, state=state, shard=shard, progress=progress
    )


def observations_cache_file(
    bundle: Bundle, variant: str, samples: Samples, shard: tuple[int, int] = ALL_SAMPLES
) -> Path | None:
    """Names the file that keeps the observations of these samples, for another run or method.

    A damaged one is removed. None where nothing can be written.
    """
    made_with = msgspec.json.encode([fingerprint_of(bundle, variant), samples.sha256, shard])
    path = cache_folder("calibration") / f"{hashlib.sha256(made_with).hexdigest()}.npz"
    try:
        read_observations(path)
    except CalibrationError:
        path.unlink(missing_ok=True)  # damaged, and made again
    except InputError:
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path if os.access(path.parent, os.W_OK) else None


def _of_bundle(file: Path, bundle: Bundle, variant: str) -> Observations:
    found = read_observations(file)
    if other := mismatch_with(found.fingerprint, bundle, variant):
        raise CalibrationError(
            f"{file} holds observations of {other}, not of {bundle.manifest.name} {variant} in "
            f"{bundle.folder}; collect them from this bundle"
        )
    return found

"""`hybrid-deploy calibrate`: a bundle and samples -> the ranges of its activations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.bundle.paths import check_outside_bundles
from hybrid_deploy.bundle.placement import check_file_output
from hybrid_deploy.calibration.statistics.range_methods import METHODS
from hybrid_deploy.cli.options.common import BUNDLE, FORCE
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.options.samples import (
    GOLDEN,
    SKIP_BAD,
    log_skipped,
)
from hybrid_deploy.cli.output import say
from hybrid_deploy.cli.progress import stage_bars
from hybrid_deploy.errors import UsageError

if TYPE_CHECKING:
    from hybrid_deploy.calibration.calibrate import ObservationReport

_DEFAULT_METHOD = "minmax"
_OBSERVATIONS_SUFFIX = ".npz"

Shard = tuple[int, int]


def _shard(context: click.Context, option: click.Parameter, value: str | None) -> Shard | None:
    """Returns index (from 0) and number of shards of a text such as `2/4`."""
    if value is None:
        return None
    numbers = re.fullmatch(r"(\d+)/(\d+)", value)
    if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise click.BadParameter(f"expected K/N with K within 1..N, got {value!r}.")
    return int(numbers[1]) - 1, int(numbers[2])


@click.command(
    epilog="Example: hybrid-deploy calibrate digits.bundle --samples lines/ -o scales.json"
)
@BUNDLE
@click.option(
    "--samples", type=PATH, metavar="FOLDER",
    help="Folder with typical inputs, or with .npz files of encoder inputs by name; or one file.",
)  # fmt: skip
@GOLDEN
@SKIP_BAD
@click.option(
    "--shard", callback=_shard, metavar="K/N",
    help="Decode the K-th of every N samples, and write the observations as .npz, to be merged.",
)  # fmt: skip
@click.option(
    "--merge", multiple=True, type=PATH, metavar="FILE",
    help="Merge the observations of shards that were run before; once for each shard.",
)  # fmt: skip
@click.option(
    "--method",
    help=f"How the range of an activation is chosen: {', '.join(METHODS)}; "
    f"default: {_DEFAULT_METHOD}.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=PATH,
    help="The scales.json to write; with --shard the .npz.",
)  # fmt: skip
@FORCE
@click.option(
    "--format", "output_format", type=click.Choice(["line", "json"]),
    default="line", show_default=True, help="How the result is printed.",
)  # fmt: skip
def calibrate(
    bundle: Path,
    samples: Path | None,
    golden: bool,
    skip_bad: bool,
    shard: Shard | None,
    merge: tuple[Path, ...],
    method: str | None,
    output: Path,
    force: bool,
    output_format: str,
) -> None:
    """Decode samples with the float variant of BUNDLE and write the ranges of its activations.

    Observations are kept in `calibration` of $HYBRID_DEPLOY_CACHE (default ~/.cache/hybrid_deploy):
    an interrupted run is resumed, another method needs no new run, and quantize reuses them.
    Large sets of samples are split: each machine runs a shard, and --merge gives the same scales
    as one run.
    """
    from hybrid_deploy.calibration.calibrate import merge_files, observe_bundle
    from hybrid_deploy.calibration.observation.collect import ALL_SAMPLES
    from hybrid_deploy.calibration.statistics.range_methods import range_method

    _check_request(bool(merge), samples is not None or golden, skip_bad, shard, method)
    _check_output(output, shard, force=force)
    range_method(method or _DEFAULT_METHOD)
    if merge:
        observed = merge_files(bundle, merge)
    else:
        with stage_bars() as show:
            observed = observe_bundle(
                bundle, samples, golden=golden, skip_bad=skip_bad, shard=shard or ALL_SAMPLES,
                progress=show,
            )  # fmt: skip
    log_skipped(observed.skipped)
    method_used = None if shard else method or _DEFAULT_METHOD
    _write(observed, output, method_used, force=force)
    say((_json if output_format == "json" else _line)(observed, output, method_used))


def _check_request(
    is_merge: bool, has_samples: bool, skip_bad: bool, shard: Shard | None, method: str | None
) -> None:
    if is_merge and (has_samples or skip_bad or shard):
        raise UsageError(
            "--merge takes no samples: they were decoded with the shards; "
            "leave --samples, --golden, --skip-bad and --shard out"
        )
    if not (is_merge or has_samples):
        raise UsageError("there is nothing to decode; give --samples FOLDER, --golden or --merge")
    if shard and method:
        raise UsageError("a shard has no method yet; give --method with --merge")


def _check_output(output: Path, shard: Shard | None, *, force: bool) -> None:
    check_outside_bundles(output)
    is_observations = output.suffix.lower() == _OBSERVATIONS_SUFFIX
    if shard and not is_observations:
        raise UsageError(
            f"{output} would hold observations of a shard, which are {_OBSERVATIONS_SUFFIX}; "
            f"name it {output.stem}{_OBSERVATIONS_SUFFIX}"
        )
    if is_observations and not shard:
        raise UsageError(f"{output} would hold scales, which are JSON; name it {output.stem}.json")
    check_file_output(output, force=force)


def _write(observed: ObservationReport, output: Path, method: str | None, *, force: bool) -> None:
    """Writes the scales by a method; without a method, the observations of a shard."""
    from hybrid_deploy.bundle.atomic_write import make_parent, write_file
    from hybrid_deploy.calibration.statistics.scales import encode_scales

    if method is None:
        observed.observations.save(output, force=force)
        return
    make_parent(output)
    write_file(output, encode_scales(observed.observations.scales(method)), force=force)


def _line(observed: ObservationReport, output: Path, method: str | None) -> str:
    observations = observed.observations
    skipped = f", {len(observed.skipped)} samples left out" if observed.skipped else ""
    return (
        f"{output}: {method or 'observations'} over {len(observations.samples)} samples and "
        f"{observations.steps} steps, {observations.tensor_count} tensors{skipped}"
    )


def _json(observed: ObservationReport, output: Path, method: str | None) -> str:
    import json

    observations = observed.observations
    return json.dumps(
        {
            "output": str(output),
            "method": method,
            "samples": len(observations.samples),
            "steps": observations.steps,
            "tensors": observations.tensor_count,
            "skipped": [
                {"sample": sample.name, "reason": sample.reason} for sample in observed.skipped
            ],
        }
    )

"""`hybrid-deploy build`: variants of a bundle -> TensorRT engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options.common import FORMAT
from hybrid_deploy.cli.options.numbers import LONGEST_S, FiniteRange
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.errors import BuildError, UsageError
from hybrid_deploy.report import Format
from hybrid_deploy.target import TARGETS, Target, parse_target

if TYPE_CHECKING:
    from hybrid_deploy.bundle.bundle import Bundle
    from hybrid_deploy.cli.build_output import Row
    from hybrid_deploy.runtime.tensorrt_builder.options import BuildOptions

_BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class _BuildRequest:
    """The engines to build, one for each graph of each variant and target."""

    targets: tuple[Target, ...]
    variants: tuple[str, ...]
    options: BuildOptions


@click.command(
    epilog="Example: hybrid-deploy build digits.bundle --target rtx:sm_86 --variant fp16"
)
@click.argument("bundle", required=False, type=PATH)
@click.option(
    "--target", "targets", multiple=True, metavar="TARGET",
    help=f"What to build for, may be repeated: {', '.join(TARGETS)}.",
)  # fmt: skip
@click.option("--variant", "variants", multiple=True, help="Variant to build; default: all.")
@click.option(
    "--profile", "ranges", multiple=True, metavar="NAME=MIN[:TYPICAL:MAX]",
    help="Sizes to serve, within those of the bundle; may be repeated: --profile batch=1:4:8. "
    "A single size, batch=1, is fixed in the engine, which suits it best.",
)  # fmt: skip
@click.option(
    "--workspace", "workspace_mb", type=click.IntRange(min=1), metavar="MB",
    help="Most scratch memory that a layer may take; default: TensorRT's own limit.",
)  # fmt: skip
@click.option(
    "--hardware-compatible", is_flag=True,
    help="TensorRT only: an engine for every GPU from Ampere on, but not on Jetson. Its kernels "
    "have 48 KiB of shared memory and fewer of them are fused: it can be slower.",
)  # fmt: skip
@click.option(
    "--version-compatible", is_flag=True,
    help="TensorRT only: an engine that later versions of TensorRT load. It carries its own "
    "runtime, so it is larger, and has fewer kernels to choose from: it can be slower.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=FiniteRange(min=0, max=LONGEST_S, min_open=True),
    metavar="SECONDS", help="Stop the build of an engine that takes longer; default: an hour.",
)  # fmt: skip
@click.option("--layers", is_flag=True, help="Show the layers that TensorRT made from every graph.")
@click.option("--list", "list_cache", is_flag=True, help="Show the engines in the cache instead.")
@click.option("--clean", is_flag=True, help="Delete engines from the cache instead.")
@click.option(
    "--older-than", "days", type=FiniteRange(min=0), metavar="DAYS",
    help="With --clean: only engines not used for so long.",
)  # fmt: skip
@FORMAT
def build(
    bundle: Path | None,
    targets: tuple[str, ...],
    variants: tuple[str, ...],
    ranges: tuple[str, ...],
    workspace_mb: int | None,
    hardware_compatible: bool,
    version_compatible: bool,
    timeout_s: float | None,
    layers: bool,
    list_cache: bool,
    clean: bool,
    days: float | None,
    output_format: Format,
) -> None:
    """Build the TensorRT engines of BUNDLE, or find them in the cache.

    Engines are kept in `engines` of $HYBRID_DEPLOY_CACHE (default ~/.cache/hybrid_deploy). Exit
    code 1 when an engine could not be built; the others are built all the same.

    --list and --clean look at the engines that are there: all of them, or those of BUNDLE, of the
    given variants, of the given targets.
    """
    from hybrid_deploy.bundle.bundle import open_bundle

    has_build_options = bool(
        ranges or workspace_mb or hardware_compatible or version_compatible or timeout_s
    )
    _refuse_mixed_options(list_cache, clean, days, has_build_options)
    opened = None if bundle is None else open_bundle(bundle)
    parsed = tuple(parse_target(text) for text in dict.fromkeys(targets))
    if list_cache or clean:
        from hybrid_deploy.cli.engine_cache import clean_cache, show_cache

        if list_cache:
            show_cache(opened, variants, parsed, output_format, layers=layers)
        else:
            clean_cache(opened, variants, parsed, output_format, days=days)
        return
    if opened is None or not parsed:
        missing = "argument 'BUNDLE'" if opened is None else "option '--target'"
        raise click.UsageError(f"Missing {missing}.")
    from hybrid_deploy.runtime.tensorrt_builder.optimization_profile import narrow_dims
    from hybrid_deploy.runtime.tensorrt_builder.options import TIMEOUT_S, BuildOptions

    names = tuple(dict.fromkeys(variants)) or tuple(opened.manifest.variants)
    for name in names:
        opened.variant(name)
    options = BuildOptions(
        workspace_bytes=None if workspace_mb is None else workspace_mb * _BYTES_PER_MB,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
    )
    ranged = narrow_dims(opened, ranges) if ranges else opened
    rows = _build_rows(ranged, _BuildRequest(parsed, names, options))
    _report(rows, output_format, layers=layers)


def _refuse_mixed_options(
    list_cache: bool, clean: bool, days: float | None, has_build_options: bool
) -> None:
    if list_cache and clean:
        raise UsageError("--list and --clean exclude each other; give one of them")
    if days is not None and not clean:
        raise UsageError("--older-than limits what --clean deletes; give --clean too")
    if has_build_options and (list_cache or clean):
        raise UsageError(
            "--profile, --workspace and the like belong to a build; leave them out here"
        )


def _build_rows(bundle: Bundle, request: _BuildRequest) -> list[Row]:
    """Builds every engine, and returns a row for each; a failure is also printed on stderr."""
    from hybrid_deploy.cli.build_output import built_row, failed_row
    from hybrid_deploy.cli.progress import BuildProgress
    from hybrid_deploy.runtime.engines.build import build_engine

    progress = BuildProgress()
    rows: list[Row] = []
    printed: set[str] = set()
    for target in request.targets:
        for name in request.variants:
            for role in bundle.loop_graphs(name):
                try:
                    with progress.engine():
                        record = build_engine(
                            bundle, name, role, target,
                            progress=progress, options=request.options,
                        )  # fmt: skip
                    rows.append(built_row(record))
                except BuildError as error:
                    if str(error) not in printed:  # a missing GPU fails every graph alike
                        log(f"failed: {error}")
                    printed.add(str(error))
                    rows.append(failed_row(name, role, target))
    return rows


def _report(rows: list[Row], output_format: Format, *, layers: bool) -> None:
    from hybrid_deploy.cli.build_output import is_failed, render_built, render_layers

    render = render_layers if layers else render_built
    say(render(rows, output_format), nl=False)
    log(_summary(rows))
    if failed := sum(map(is_failed, rows)):
        raise BuildError(f"{failed} of {len(rows)} engines were not built; the reasons are above")


def _summary(rows: Sequence[Row]) -> str:
    """Returns the summary line: how many engines there are, and that none of them was run."""
    from hybrid_deploy.cache_dir import cache_folder
    from hybrid_deploy.runtime.host.local_gpu import local_gpu

    built = sum(row["result"] == "built" for row in rows)
    cached = sum(row["result"] == "from cache" for row in rows)
    gpu = local_gpu()
    reason = "building does not run them" if gpu else "no GPU at hand"
    return (
        f"{built} engines built, {cached} from the cache {cache_folder('engines')}. "
        f"Not run: {reason}, so neither their results nor their speed were checked."
    )

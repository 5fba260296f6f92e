"""`hybrid-deploy build`: variants of a bundle -> TensorRT engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.cli.options import BUNDLE, FORMAT
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError
from hybrid_deploy.report import Column, Format, render
from hybrid_deploy.target import TARGETS, Target, parse_target

if TYPE_CHECKING:
    from hybrid_deploy.runtime.engine import EngineRecord

_COLUMNS = (
    Column("variant", "variant"),
    Column("graph", "graph"),
    Column("target", "target"),
    Column("seconds", "s", digits=2),
    Column("mb", "MB", digits=2),
    Column("result", "result"),
)
_BYTES_PER_MB = 1e6


@click.command(
    epilog="Example: hybrid-deploy build digits.bundle --target rtx:sm_86 --variant fp16"
)
@BUNDLE
@click.option(
    "--target", "targets", multiple=True, required=True, metavar="TARGET",
    help=f"What to build for, may be repeated: {', '.join(TARGETS)}.",
)  # fmt: skip
@click.option("--variant", "variants", multiple=True, help="Variant to build; default: all.")
@FORMAT
def build(
    bundle: Path, targets: tuple[str, ...], variants: tuple[str, ...], output_format: Format
) -> None:
    """Build the TensorRT engines of BUNDLE, or find them in the cache.

    Engines are kept in `engines` of $HYBRID_DEPLOY_CACHE (default ~/.cache/hybrid_deploy). Exit
    code 1 when an engine could not be built; the others are built all the same.
    """
    from rich.console import Console

    from hybrid_deploy.bundle import open_bundle
    from hybrid_deploy.runtime.engine import build_engine

    log = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    opened = open_bundle(bundle)
    wanted = [parse_target(text) for text in dict.fromkeys(targets)]
    names = list(dict.fromkeys(variants)) or list(opened.manifest.variants)
    for name in names:
        opened.variant(name)
    rows: list[dict[str, object]] = []
    for target in wanted:
        for name in names:
            for role in opened.graphs(name):
                try:
                    record = build_engine(opened, name, role, target, progress=log.print)
                    rows.append(_built_row(record))
                except BuildError as error:
                    log.print(f"failed: {error}")
                    rows.append(_failed_row(name, role, target))
    click.echo(render(rows, _COLUMNS, output_format), nl=False)
    log.print(_summary(rows))
    if failed := sum(row["result"] == "failed" for row in rows):
        raise BuildError(f"{failed} of {len(rows)} engines were not built; the reasons are above")


def _built_row(record: EngineRecord) -> dict[str, object]:
    return {
        "variant": record.variant,
        "graph": record.role.value,
        "target": record.target,
        "seconds": round(record.seconds, 2),
        "mb": round(record.size_bytes / _BYTES_PER_MB, 2),
        "result": "from cache" if record.from_cache else "built",
    }


def _failed_row(variant: str, role: GraphRole, target: Target) -> dict[str, object]:
    return {
        "variant": variant,
        "graph": role.value,
        "target": str(target),
        "seconds": None,
        "mb": None,
        "result": "failed",
    }


def _summary(rows: Sequence[Mapping[str, object]]) -> str:
    """Says what the rows prove and what they do not."""
    from hybrid_deploy.cache import cache_folder
    from hybrid_deploy.runtime.local_gpu import local_gpu

    built = sum(row["result"] == "built" for row in rows)
    cached = sum(row["result"] == "from cache" for row in rows)
    gpu = local_gpu()
    reason = "building does not run them" if gpu else "no GPU at hand"
    return (
        f"{built} engines built, {cached} from the cache {cache_folder('engines')}. "
        f"Not run: {reason}, so neither their results nor their speed were checked."
    )

"""`hybrid-deploy build --list` and `--clean`: the engines in the cache of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import TYPE_CHECKING

from hybrid_deploy.cli.build_output import (
    GraphName,
    cached_row,
    render_cached,
    render_layers,
)
from hybrid_deploy.cli.output import log, say
from hybrid_deploy.runtime.engines.cache import EngineCache
from hybrid_deploy.runtime.engines.cache_key import graph_identity
from hybrid_deploy.runtime.engines.cache_listing import (
    CachedEngine,
    delete_engines,
    delete_leftovers,
    list_engines,
)

if TYPE_CHECKING:
    from hybrid_deploy.bundle.bundle import Bundle
    from hybrid_deploy.report import Format
    from hybrid_deploy.target import Target

NamedEngine = tuple[CachedEngine, GraphName]

_BYTES_PER_MB = 1e6
_SECONDS_PER_DAY = 86400


def show_cache(
    bundle: Bundle | None,
    variants: Sequence[str],
    targets: Sequence[Target],
    output_format: Format,
    *,
    layers: bool,
) -> None:
    """Prints the engines in the cache that match.

    Args:
        bundle: bundle whose engines are printed; None prints those of every bundle.
        variants: names of the variants to print; empty for all.
        targets: targets to print; empty for all.
        output_format: format of the report.
        layers: whether the report shows the layers of each engine instead of size and age.
    """
    cache = EngineCache()
    engines = _matching_engines(cache, bundle, variants, targets)
    rows = [cached_row(engine, name) for engine, name in engines]
    render = render_layers if layers else render_cached
    say(render(rows, output_format), nl=False)
    size_bytes = sum(engine.size_bytes for engine, _ in engines)
    log(f"{len(rows)} engines in {cache.folder}, {_mb(size_bytes)}")


def clean_cache(
    bundle: Bundle | None,
    variants: Sequence[str],
    targets: Sequence[Target],
    output_format: Format,
    *,
    days: float | None,
) -> None:
    """Deletes the engines in the cache that match, and prints them.

    The temporary folders of builds that were killed are deleted too.

    Args:
        bundle: bundle whose engines are deleted; None deletes those of every bundle.
        variants: names of the variants to delete; empty for all.
        targets: targets to delete; empty for all.
        output_format: format of the report.
        days: number of days without use after which an engine is deleted; None deletes all.
    """
    cache = EngineCache()
    latest = time() - (days or 0) * _SECONDS_PER_DAY
    matching = {
        engine.key: (engine, name)
        for engine, name in _matching_engines(cache, bundle, variants, targets)
        if days is None or engine.used_at < latest
    }
    deletion = delete_engines(cache, [engine for engine, _ in matching.values()])
    leftovers = delete_leftovers(cache)
    rows = [cached_row(*matching[engine.key]) for engine in deletion.deleted]
    say(render_cached(rows, output_format), nl=False)
    in_use = f", {len(deletion.in_use)} kept: another process holds them" if deletion.in_use else ""
    left = f", and {leftovers} folders that killed builds left" if leftovers else ""
    size = _mb(deletion.size_bytes)
    log(f"{len(rows)} engines deleted from {cache.folder}, {size}{left}{in_use}")
    for folder, reason in deletion.kept:
        log(f"warning: {folder} stays, as {reason}; remove it if you need the space")


def _matching_engines(
    cache: EngineCache, bundle: Bundle | None, variants: Sequence[str], targets: Sequence[Target]
) -> list[NamedEngine]:
    target_names = [str(target) for target in targets]
    named = ((engine, _name(engine, bundle)) for engine in list_engines(cache))
    return [
        (engine, name)
        for engine, name in named
        if (bundle is None or name.bundle is not None)
        and (not variants or name.variant in variants)
        and (not target_names or _target(engine) in target_names)
    ]


def _name(engine: CachedEngine, bundle: Bundle | None) -> GraphName:
    """Returns the graph that an engine was built from, looked up in the bundle if there is one."""
    if engine.record is None:
        return GraphName()
    if bundle is None:
        source = engine.record.built_for
        return GraphName(source.bundle, source.variant, source.graph) if source else GraphName()
    for variant in bundle.manifest.variants:
        for role, spec in bundle.graphs(variant).items():
            identity = graph_identity(bundle, spec)
            if identity.items() <= engine.record.shaped_by.items():
                return GraphName(bundle.manifest.name, variant, role.value)
    return GraphName()


def _target(engine: CachedEngine) -> object:
    return engine.record.shaped_by.get("target") if engine.record else None


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / _BYTES_PER_MB:.2f} MB"

"""The reports of `build`: engines that were built, engines in the cache, layers of engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING

from hybrid_deploy.report import Column, Format, render

if TYPE_CHECKING:
    from hybrid_deploy.contract import GraphRole
    from hybrid_deploy.runtime.engines.build import EngineRecord
    from hybrid_deploy.runtime.engines.cache_listing import CachedEngine
    from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary
    from hybrid_deploy.target import Target

Row = Mapping[str, object]
"""Record of one engine, by the keys of the columns below."""

_GRAPH = (Column("variant", "variant"), Column("graph", "graph"), Column("target", "target"))
_BUILT = (
    *_GRAPH,
    Column("seconds", "s", digits=2),
    Column("mb", "MB", digits=2),
    Column("result", "result"),
)
_CACHED = (
    Column("bundle", "bundle"),
    *_GRAPH,
    Column("tensorrt", "TensorRT"),
    Column("mb", "MB", digits=2),
    Column("age_days", "days old", digits=1),
    Column("unused_days", "unused", digits=1),
    Column("damage", "damage"),
    Column("key", "key"),
)
_LAYERS = (
    *_GRAPH,
    Column("attentions", "attention", digits=0),
    Column("fused", "fused", digits=0),
    Column("caches_in_place", "caches in place", digits=0),
    Column("caches_copied", "copied", digits=0),
    Column("weights_mb", "weights MB", digits=2),
    Column("activations_mb", "activations MB", digits=2),
    Column("kernels", "kernels"),
)
_ALL_LAYERS = Column("layers", "layers")
_BYTES_PER_MB = 1e6
_SECONDS_PER_DAY = 86400
_KEY_DIGITS = 12
_FAILED = "failed"


@dataclass(frozen=True)
class GraphName:
    """Graph that an engine was built from.

    Attributes:
        bundle: name of the bundle's model; None if it is unknown.
        variant: name of the variant; None if it is unknown.
        graph: role of the graph; None if it is unknown.
    """

    bundle: str | None = None
    variant: str | None = None
    graph: str | None = None


def built_row(record: EngineRecord) -> Row:
    """Returns the row of an engine that was built or found in the cache."""
    return {
        "variant": record.variant,
        "graph": record.role.value,
        "target": record.target,
        "seconds": round(record.seconds, 2),
        "mb": round(record.size_bytes / _BYTES_PER_MB, 2),
        "result": "from cache" if record.from_cache else "built",
        "layers": record.layers,
    }


def failed_row(variant: str, role: GraphRole, target: Target) -> Row:
    """Returns the row of an engine whose build failed."""
    graph = {"variant": variant, "graph": role.value, "target": str(target)}
    return graph | {"seconds": None, "mb": None, "result": _FAILED, "layers": None}


def cached_row(engine: CachedEngine, name: GraphName) -> Row:
    """Returns the row of an engine in the cache."""
    shaped_by = engine.record.shaped_by if engine.record else {}
    flavour, version = shaped_by.get("flavour"), shaped_by.get("version")
    now = time()
    return {
        "bundle": name.bundle,
        "variant": name.variant,
        "graph": name.graph,
        "target": shaped_by.get("target"),
        "tensorrt": f"{flavour} {version}" if version else None,
        "seconds": round(engine.record.build_seconds, 2) if engine.record else None,
        "mb": round(engine.size_bytes / _BYTES_PER_MB, 2),
        "age_days": round((now - engine.built_at) / _SECONDS_PER_DAY, 2),
        "unused_days": round((now - engine.used_at) / _SECONDS_PER_DAY, 2),
        "damage": engine.damage,
        "key": engine.key,
        "layers": engine.record.layers if engine.record else None,
    }


def render_built(rows: list[Row], output_format: Format) -> str:
    """Returns the report of a build; JSON also holds the layers."""
    return render(rows, _with_layers(_BUILT, output_format), output_format)


def render_cached(rows: list[Row], output_format: Format) -> str:
    """Returns the list of the cache; tables shorten the keys, JSON also holds the layers."""
    if output_format in ("table", "md"):
        rows = [{**row, "key": str(row["key"])[:_KEY_DIGITS]} for row in rows]
    return render(rows, _with_layers(_CACHED, output_format), output_format)


def render_layers(rows: list[Row], output_format: Format) -> str:
    """Returns the report of the layers that TensorRT made from every graph."""
    if output_format == "json":
        return render(rows, (*_GRAPH, _ALL_LAYERS), output_format)
    return render([{**row, **_layer_cells(row["layers"])} for row in rows], _LAYERS, output_format)


def is_failed(row: Row) -> bool:
    """Returns whether a row is that of an engine whose build failed."""
    return row["result"] == _FAILED


def _with_layers(columns: tuple[Column, ...], output_format: Format) -> tuple[Column, ...]:
    return (*columns, _ALL_LAYERS) if output_format == "json" else columns


def _layer_cells(layers: object) -> dict[str, object]:
    from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary

    if not isinstance(layers, LayerSummary):
        return {}
    fused = sum(kernels.count for kernels in layers.kernels if kernels.kind == "attention")
    return {
        "attentions": layers.attentions,
        "fused": fused if layers.kernels else None,
        "caches_in_place": len(layers.caches_in_place),
        "caches_copied": len(layers.caches_copied),
        "weights_mb": _megabytes(layers.weight_bytes),
        "activations_mb": _megabytes(layers.activation_bytes),
        "kernels": ", ".join(_kernel_counts(layers)) or None,
    }


def _kernel_counts(layers: LayerSummary) -> Iterable[str]:
    """Returns the number of kernels of each kind as text: `3 gemm fp16+fp32`."""
    return (f"{k.count} {k.kind} {'+'.join(k.types)}".rstrip() for k in layers.kernels)


def _megabytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / _BYTES_PER_MB, 2)

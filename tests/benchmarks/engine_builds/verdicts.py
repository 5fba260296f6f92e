"""Builds every variant with TensorRT-RTX and compares the outcome with the expected one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.device_support import check_precision, device_of
from hybrid_deploy.errors import BuildError, UsageError
from hybrid_deploy.report import Column
from hybrid_deploy.runtime.engines.build import EngineRecord, build_engine
from hybrid_deploy.runtime.engines.cache import EngineCache
from hybrid_deploy.runtime.tensorrt_builder.cache_write_support import cache_write_of
from hybrid_deploy.target import parse_target

TARGETS = ("rtx:sm_75", "rtx:sm_86", "rtx:sm_89", "rtx:sm_120")
COLUMNS = (
    Column("variant", "variant"),
    Column("opset", "opset", digits=0),
    Column("caches", "cache writes"),
    Column("target", "target"),
    Column("seconds", "s", digits=1),
    Column("mb", "MB", digits=1),
    Column("verdict", "verdict"),
)
BUILDS, REFUSED = "builds", "refused, as expected: "
_BYTES_PER_MB = 1e6

Row = Mapping[str, object]


def verdict_rows(
    bundle: Bundle, variants: Sequence[str], targets: Sequence[str], cache: EngineCache
) -> Iterator[Row]:
    """Builds encoder, prefill and step; yields one row for the three per variant and target."""
    for variant in variants:
        spec = bundle.variant(variant)
        lowering = cache_write_of(spec)
        facts = {"variant": variant, "opset": spec.opset, "caches": lowering and lowering.value}
        for target in targets:
            built, refusals = build_graphs(bundle, variant, target, cache)
            yield {
                **facts,
                "target": target,
                "seconds": sum(record.seconds for record in built) if built else None,
                "mb": sum(r.size_bytes for r in built) / _BYTES_PER_MB if built else None,
                "verdict": _verdict(expected_refusal(bundle, variant, target), refusals),
            }


def is_unexpected(row: Row) -> bool:
    """Returns whether the outcome of a build differs from that of `device_support`."""
    return not str(row["verdict"]).startswith((BUILDS, REFUSED))


def build_graphs(
    bundle: Bundle, variant: str, target: str, cache: EngineCache
) -> tuple[list[EngineRecord], dict[GraphRole, str]]:
    """Returns the records of the built engines, and TensorRT's reason for each refused graph."""
    built, refusals = [], {}
    for role in bundle.loop_graphs(variant):
        try:
            built.append(build_engine(bundle, variant, role, parse_target(target), cache=cache))
        except BuildError as error:
            refusals[role] = str(error).splitlines()[0]
    return built, refusals


def expected_refusal(bundle: Bundle, variant: str, target: str) -> str | None:
    """Returns why a device does not support a variant's precision; None if it supports it."""
    precision = bundle.variant(variant).precision
    floats = "fp16" if variant.endswith("fp16") else "fp32"
    try:
        check_precision(device_of(target), precision.encoder, precision.decoder, floats)
    except UsageError as error:
        return str(error).partition(" for the ")[0].partition(" has ")[2]
    return None


def _verdict(expected: str | None, refusals: Mapping[GraphRole, str]) -> str:
    if expected is None:
        if not refusals:
            return BUILDS
        reasons = "; ".join(refusals.values())
        return f"REFUSED unexpectedly: {reasons}"
    if not refusals:
        return f"BUILDS unexpectedly: device_support states {expected}"
    graphs = ", ".join(role.value for role in refusals)
    return f"{REFUSED}{expected} ({graphs})"

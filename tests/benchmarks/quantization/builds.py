"""Builds every variant with TensorRT-RTX for several GPUs; no engine is run."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.report import Column
from hybrid_deploy.runtime.engines.cache import EngineCache
from tests.benchmarks.engine_builds.verdicts import TARGETS, build_graphs, expected_refusal

COLUMNS = (Column("variant", "variant"), *(Column(target, target) for target in TARGETS))


def build_rows(
    bundle: Bundle, variants: Sequence[str], cache: EngineCache
) -> list[dict[str, object]]:
    """Builds every graph of every variant for every target and returns one row per variant.

    A cell states the number of built graphs, or TensorRT's reason for the first refused graph. If
    the device does not support the precision, the cell names the missing one and nothing is built.
    """
    rows: list[dict[str, object]] = []
    for variant in variants:
        cells = {target: _cell(bundle, variant, target, cache) for target in TARGETS}
        rows.append({"variant": variant, **cells})
    return rows


def _cell(bundle: Bundle, variant: str, target: str, cache: EngineCache) -> str:
    if unsupported := expected_refusal(bundle, variant, target):
        return unsupported
    built, refusals = build_graphs(bundle, variant, target, cache)
    if refusals:
        role, reason = next(iter(refusals.items()))
        return f"{role.value}: {reason}".replace("|", "\\|")
    return f"{len(built)} built"

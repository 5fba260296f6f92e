"""Which variants TensorRT-RTX compiles for which GPUs; nothing is run."""

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
    """Builds every graph of every variant for every target.

    A cell says how many graphs were built; why not all, in TensorRT's own words; or that the device
    is known not to have the precision, which nobody tries.
    """
    rows: list[dict[str, object]] = []
    for variant in variants:
        cells = {target: _cell(bundle, variant, target, cache) for target in TARGETS}
        rows.append({"variant": variant, **cells})
    return rows


def _cell(bundle: Bundle, variant: str, target: str, cache: EngineCache) -> str:
    if known := expected_refusal(bundle, variant, target):
        return known
    built, refusals = build_graphs(bundle, variant, target, cache)
    if refusals:
        role, reason = next(iter(refusals.items()))
        return f"{role.value}: {reason}".replace("|", "\\|")
    return f"{len(built)} built"

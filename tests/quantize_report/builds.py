"""Which variants TensorRT-RTX compiles for which GPUs; nothing is run."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.devices import check_precision, device_of
from hybrid_deploy.errors import BuildError, UsageError
from hybrid_deploy.report import Column
from hybrid_deploy.runtime.engine import build_engine
from hybrid_deploy.runtime.engine_cache import EngineCache
from hybrid_deploy.target import parse_target

TARGETS = ("rtx:sm_75", "rtx:sm_86", "rtx:sm_89", "rtx:sm_120")
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
    precision = bundle.variant(variant).precision
    floats = "fp16" if variant.endswith("fp16") else "fp32"
    try:
        check_precision(device_of(target), precision.encoder, precision.decoder, floats)
    except UsageError as error:
        return str(error).partition(" for the ")[0].partition(" has ")[2]
    built = 0
    for role in bundle.graphs(variant):
        try:
            build_engine(bundle, variant, role, parse_target(target), cache=cache)
        except BuildError as error:
            return f"{role.value}: {str(error).splitlines()[0]}".replace("|", "\\|")
        built += 1
    return f"{built} built"

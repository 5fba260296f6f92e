"""The RAM that a build needs, from its last build or from an estimate."""

from __future__ import annotations

from hybrid_deploy.runtime.engines.cache import PlanRecord
from hybrid_deploy.runtime.engines.ram_check import needed_ram_bytes

MIB = 1 << 20


def test_last_build_replaces_the_estimate() -> None:
    assert needed_ram_bytes(1000 * MIB, 10 * MIB, None) == 250_000_000 + 3010 * MIB
    last = PlanRecord("", 1, 1.0, {}, peak_bytes=7)
    assert needed_ram_bytes(1000 * MIB, None, last) == 7

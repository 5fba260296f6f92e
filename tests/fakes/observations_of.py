"""Scales as a calibration would have given them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels, Provenance, Scales, StoredChannels
from hybrid_deploy.contract import GraphRole

_NOBODY = Provenance(
    model="m", variant="fp32", graphs={}, weights={}, samples=1, samples_sha256="", steps=1,
    method="minmax", producer="test",
)  # fmt: skip


def scales_of(
    ranges: Mapping[str, Range],
    channels: Mapping[str, Channels] | None = None,
    role: GraphRole = GraphRole.ENCODER,
) -> Scales:
    """Returns scales of one graph."""
    numbers = {name: StoredChannels.of(seen) for name, seen in (channels or {}).items()}
    return Scales(_NOBODY, {role.value: dict(ranges)}, {role.value: numbers})


def together(parts: Iterable[Scales]) -> Scales:
    """Returns the scales of several graphs as one."""
    every = list(parts)
    ranges = {role: of for part in every for role, of in part.ranges.items()}
    channels = {role: of for part in every for role, of in part.channels.items()}
    return Scales(_NOBODY, ranges, channels)

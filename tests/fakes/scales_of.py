"""Scales with given ranges, as a calibration returns them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels, Provenance, Scales, StoredChannels
from hybrid_deploy.contract import GraphRole

_PROVENANCE = Provenance(
    model="m", variant="fp32", graphs={}, weights={}, samples=1, samples_sha256="", steps=1,
    method="minmax", producer="test",
)  # fmt: skip


def scales_of(
    ranges: Mapping[str, Range],
    channels: Mapping[str, Channels] | None = None,
    role: GraphRole = GraphRole.ENCODER,
) -> Scales:
    """Returns the scales of one graph with these ranges and channel magnitudes."""
    stored = {name: StoredChannels.of(of_tensor) for name, of_tensor in (channels or {}).items()}
    return Scales(_PROVENANCE, {role.value: dict(ranges)}, {role.value: stored})


def merged_scales(parts: Iterable[Scales]) -> Scales:
    """Merges the scales of different graphs."""
    scales = list(parts)
    ranges = {role: ranges for part in scales for role, ranges in part.ranges.items()}
    channels = {role: channels for part in scales for role, channels in part.channels.items()}
    return Scales(_PROVENANCE, ranges, channels)

"""Decoders with weights of few bits, and with activations of 8 bits where that is asked for.

A decoder waits for its weights and not for arithmetic, so what counts is how few bytes they take.
Prefill and step share their weights: whatever is chosen for one holds in both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.calibration.half_precision.float16_embeddings import convert_embeddings
from hybrid_deploy.calibration.qdq.channel_scaling import (
    Storage,
    best_scaling,
    least_gain,
    restored_per_channel,
    scale_channels,
    scaled_range,
)
from hybrid_deploy.calibration.qdq.layers import weight_key
from hybrid_deploy.calibration.qdq.linear_operators import (
    Linear,
    input_points,
    linears,
    sharing_activations,
)
from hybrid_deploy.calibration.qdq.low_bit_types import FLOAT8, INT4, INT8, LowBitType
from hybrid_deploy.calibration.qdq.qdq_pairs import ActivationForm, insert_qdq_pairs
from hybrid_deploy.calibration.qdq.stored_weights import block_for, store_weight
from hybrid_deploy.calibration.qdq.weight_rounding import quantize_in_blocks
from hybrid_deploy.calibration.recipes import DecoderForm
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels, Scales
from hybrid_deploy.contract import GraphRole

_NUMBERS: Mapping[DecoderForm, LowBitType] = {
    DecoderForm.INT8: INT8,
    DecoderForm.INT8_WEIGHTS: INT8,
    DecoderForm.INT4_WEIGHTS: INT4,
    DecoderForm.FLOAT8: FLOAT8,
}
_ACTIVATIONS: Mapping[DecoderForm, ActivationForm] = {
    DecoderForm.INT8: ActivationForm.INT8,
    DecoderForm.FLOAT8: ActivationForm.FLOAT8,
}
_SCALED = frozenset({DecoderForm.INT8, DecoderForm.INT4_WEIGHTS})  # where rounding is coarse
_BLOCK = 128
_GAIN_OF_A_MUL = 0.25
"""What a Mul of one row must take away of an error."""


def quantize_decoder(
    graphs: Mapping[GraphRole, ir.Model],
    scales: Scales | None,
    form: DecoderForm,
    kept: Mapping[GraphRole, Collection[str]] | None = None,
    block_size: int | None = None,
) -> None:
    """Rewrites prefill and step in place.

    Args:
        graphs: float32, projections untied.
        scales: what the activations were seen to hold; without them the weights are rounded to the
            nearest, and only forms that quantize weights alone are possible.
        form: INT8, INT8_WEIGHTS, INT4_WEIGHTS or FLOAT8.
        kept: names of the operators (`Linear.name`) that stay float, by graph.
        block_size: how many weights share a scale; where they do not divide so, fewer.

    Raises:
        CalibrationError: an activation has no range, or a weight is not finite.
    """
    left = kept or {}
    targets = {
        role: [one for one in _matrices(model) if one.name not in left.get(role, ())]
        for role, model in graphs.items()
    }
    numbers, block = _NUMBERS[form], None if form in _ACTIVATIONS else block_size or _BLOCK
    ranges: dict[GraphRole, dict[str, Range]] = {role: {} for role in graphs}
    if scales is not None:
        seen = _Seen(targets, scales)
        ranges = {role: seen.ranges(of) for role, of in targets.items()}
        if form in _SCALED:
            _scale_all(graphs, targets, seen, ranges, numbers, block)
    for role, model in graphs.items():
        if form in _ACTIVATIONS:
            points = input_points(model.graph, targets[role])
            insert_qdq_pairs(model.graph, points, ranges[role], _ACTIVATIONS[form])
        for linear in targets[role]:
            _store(model.graph, linear, numbers, block)
        convert_embeddings(model)
        drop_unused_constants(model.graph)


class _Seen:
    """What the activations of every weight held, in prefill and step together.

    Attributes:
        keys: what operators of both graphs with equal weights have in common.
        channels: by key.
    """

    def __init__(self, targets: Mapping[GraphRole, list[Linear]], scales: Scales) -> None:
        self.keys = {one.node: weight_key(one) for of in targets.values() for one in of}
        self.channels: dict[bytes, Channels] = {}
        self._ranges: dict[bytes, Range] = {}
        for role in (GraphRole.STEP, GraphRole.PREFILL):
            ranges, channels = scales.of(role), scales.channels_of(role)
            for linear in targets.get(role, ()):
                name, key = str(linear.activation.name), self.keys[linear.node]
                if name in ranges:
                    known = self._ranges.get(key, ranges[name])
                    self._ranges[key] = known.union(ranges[name])
                if name in channels:
                    known_channels = self.channels.get(key, channels[name])
                    self.channels[key] = _joined(known_channels, channels[name])

    def ranges(self, targets: list[Linear]) -> dict[str, Range]:
        """Returns the range of each activation, over all that meet the same weights."""
        found: dict[str, Range] = {}
        for linear in targets:
            seen = self._ranges.get(self.keys[linear.node])
            if seen is not None:
                name = str(linear.activation.name)
                found[name] = found.get(name, seen).union(seen)
        return found


def _joined(one: Channels, other: Channels) -> Channels:
    """Takes the larger of both, and the first one's means: those of the step, which runs most."""
    return Channels(np.maximum(one.largest, other.largest), one.mean)


def _scale_all(
    graphs: Mapping[GraphRole, ir.Model],
    targets: Mapping[GraphRole, list[Linear]],
    seen: _Seen,
    ranges: Mapping[GraphRole, dict[str, Range]],
    numbers: LowBitType,
    block: int | None,
) -> None:
    """Scales the channels of activations against the weights, alike in all graphs."""
    for group in sharing_activations(targets[GraphRole.STEP]).values():
        group_keys = {seen.keys[linear.node] for linear in group}
        channels = next((seen.channels[k] for k in group_keys if k in seen.channels), None)
        if channels is None:
            continue
        storage = Storage(
            partial(_restored, form=numbers, block=_block(group[0], block)),
            activations=block is None,
        )
        weights = [linear.matrix for linear in group]
        scale = best_scaling(weights, channels, storage, least_gain(group, _GAIN_OF_A_MUL))
        if scale is None:
            continue
        for role, model in graphs.items():
            alike = [one for one in targets[role] if seen.keys[one.node] in group_keys]
            for name, same in sharing_activations(alike).items():
                scaled = scale_channels(model.graph, same, scale)
                if name in ranges[role]:
                    new = scaled_range(ranges[role][name], channels, scale)
                    ranges[role][str(scaled.name)] = new


def _restored(
    weight: NDArray[np.float32], form: LowBitType, block: int | None
) -> NDArray[np.float32]:
    if block is None:
        return restored_per_channel(weight, form)
    return quantize_in_blocks("weight", weight, block, 0, form).restored


def _store(graph: ir.Graph, linear: Linear, numbers: LowBitType, block: int | None) -> None:
    """Stores a weight in blocks where it divides so, else per channel; int4 always has blocks."""
    size = _block(linear, block)
    if numbers is INT4 and size is None:
        store_weight(graph, linear, INT8)
    else:
        store_weight(graph, linear, numbers, size, rounds_activations=block is None)


def _block(linear: Linear, block: int | None) -> int | None:
    return None if block is None else block_for(linear, block)


def _matrices(model: ir.Model) -> Iterator[Linear]:
    return (linear for linear in linears(model.graph) if linear.node.op_type != "Conv")

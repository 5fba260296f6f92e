"""Decoders with stored weights of 8 or 4 bits and, in some forms, activations of 8 bits.

    BEFORE                          AFTER
    x                               x, divided by channel scales (some forms)
    |                               QuantizeLinear, DequantizeLinear (INT8 and FLOAT8)
    MatMul (float32 weight)         MatMul (DequantizeLinear of the stored weight)

A decoder waits for its weights to be read and not for arithmetic, so its speed depends on their
bytes. Prefill and step share their weights, so both get the same scales and the same stored bytes.

The projection to a large vocabulary has 4 bits wherever a look-up of exact logits follows it (see
`rescored_logits`); the one to a small vocabulary has 8, since its bytes hardly count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.calibration.half_precision.float16_embeddings import convert_embeddings
from hybrid_deploy.calibration.qdq.channel_scaling import (
    ProductQuantization,
    best_channel_scale,
    range_after_scaling,
    required_gain,
    round_trip_per_channel,
    scale_channels,
)
from hybrid_deploy.calibration.qdq.error_feedback import round_with_error_feedback
from hybrid_deploy.calibration.qdq.layers import weight_key
from hybrid_deploy.calibration.qdq.linear_operators import (
    Linear,
    inputs_to_quantize,
    linear_operators,
    products_by_activation,
)
from hybrid_deploy.calibration.qdq.low_bit_types import FLOAT8, INT4, INT8, LowBitType
from hybrid_deploy.calibration.qdq.qdq_pairs import ActivationForm, insert_qdq_pairs
from hybrid_deploy.calibration.qdq.rescored_logits import rescore_likeliest
from hybrid_deploy.calibration.qdq.stored_weights import largest_block_size, store_weight
from hybrid_deploy.calibration.qdq.vocabulary_projection import (
    MIN_VOCABULARY,
    vocabulary_projection,
)
from hybrid_deploy.calibration.qdq.weight_rounding import (
    QuantizedWeight,
    check_finite,
    quantize_in_blocks,
)
from hybrid_deploy.calibration.recipes import INT4_BLOCK, INT8_BLOCK, DecoderForm
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels, Scales
from hybrid_deploy.calibration.statistics.second_moments import WeightMoments
from hybrid_deploy.contract import GraphRole

_WEIGHT_TYPES: Mapping[DecoderForm, LowBitType] = {
    DecoderForm.INT8: INT8,
    DecoderForm.INT8_WEIGHTS: INT8,
    DecoderForm.INT4_WEIGHTS: INT4,
    DecoderForm.FLOAT8: FLOAT8,
}
_ACTIVATIONS: Mapping[DecoderForm, ActivationForm] = {
    DecoderForm.INT8: ActivationForm.INT8,
    DecoderForm.FLOAT8: ActivationForm.FLOAT8,
}
# The forms whose rounding is coarse: in the others, channel scaling gains too little.
_SCALED_FORMS = frozenset({DecoderForm.INT8, DecoderForm.INT4_WEIGHTS})
# The forms whose projection to a large vocabulary has 4 bits.
_RESCORED_FORMS = frozenset({DecoderForm.INT4_WEIGHTS, DecoderForm.INT4_CPU, DecoderForm.INT8_CPU})
_DEFAULT_BLOCKS = {INT8: INT8_BLOCK, INT4: INT4_BLOCK}
_GAIN_OF_MUL = 0.25
"""Share of a product's error that a Mul of one row must remove to be worth its time."""


@dataclass(frozen=True)
class DecoderRounding:
    """What was measured about the decoder, and what follows for single operators.

    Attributes:
        scales: ranges and channel statistics of the activations; None rounds the weights to the
            nearest without scaling, which only forms without quantized activations accept.
        moments: second moments of the inputs of each weight, with which int4 weights are rounded
            with error feedback and without channel scaling; None rounds to the nearest.
        in_float: names of the operators (`Linear.name`) that stay float, by graph.
        in_8_bits: names of the operators that have 8 bits in an int4 form, by graph.
    """

    scales: Scales | None = None
    moments: WeightMoments | None = None
    in_float: Mapping[GraphRole, Collection[str]] = field(default_factory=dict)
    in_8_bits: Mapping[GraphRole, Collection[str]] = field(default_factory=dict)


_NOTHING_MEASURED = DecoderRounding()


def quantize_decoder(
    graphs: Mapping[GraphRole, ir.Model],
    form: DecoderForm,
    rounding: DecoderRounding = _NOTHING_MEASURED,
    block_size: int | None = None,
) -> None:
    """Quantizes prefill and step in place.

    Args:
        graphs: the float32 graphs by role, projections untied.
        form: a form with weights of 8 or 4 bits.
        rounding: the measurements that rounding uses, and the operators with more bits.
        block_size: number of weights that share a scale; a smaller block is used where this one
            does not divide the summed axis. None for the form's own.

    Raises:
        CalibrationError: an activation has no range, or a weight is not finite.
    """
    scales, in_float = rounding.scales, rounding.in_float
    targets = {
        role: [op for op in _matrix_products(model) if op.name not in in_float.get(role, ())]
        for role, model in graphs.items()
    }
    weight_type = _WEIGHT_TYPES[form.portable]
    max_block_size = None
    if form.portable not in _ACTIVATIONS:
        max_block_size = block_size or _DEFAULT_BLOCKS[weight_type]
    store = _WeightStore(weight_type, max_block_size, rounding.moments or {})
    if form in _RESCORED_FORMS:
        for role, model in graphs.items():
            targets[role] = _without_projection(model.graph, targets[role])
    ranges: dict[GraphRole, dict[str, Range]] = {role: {} for role in graphs}
    if scales is not None:
        statistics = _ActivationStatistics(targets, scales)
        ranges = {role: statistics.ranges(operators) for role, operators in targets.items()}
        if form.portable in _SCALED_FORMS and rounding.moments is None:
            _scale_channels_in_all_graphs(
                graphs, targets, statistics, ranges, weight_type, max_block_size
            )
    for role, model in graphs.items():
        if form.portable in _ACTIVATIONS:
            activations = inputs_to_quantize(model.graph, targets[role])
            insert_qdq_pairs(model.graph, activations, ranges[role], _ACTIVATIONS[form.portable])
        for linear in targets[role]:
            if linear.name in rounding.in_8_bits.get(role, ()):
                _store_to_nearest(model.graph, linear, INT8)
            else:
                store.store(model.graph, linear)
        convert_embeddings(model)
        drop_unused_constants(model.graph)


def _without_projection(graph: ir.Graph, targets: list[Linear]) -> list[Linear]:
    """Stores the weight of the vocabulary projection in place; returns the other products."""
    projection = vocabulary_projection(graph)
    if projection is None or projection.linear.node not in [linear.node for linear in targets]:
        return targets
    linear = projection.linear
    is_large = len(projection.table) >= MIN_VOCABULARY
    if is_large:
        check_finite(str(linear.weight.name), linear.matrix)
        rescore_likeliest(graph, projection)
    _store_to_nearest(graph, linear, INT4 if is_large else INT8)
    return [target for target in targets if target.node is not linear.node]


class _ActivationStatistics:
    """Ranges and channel statistics of the activations of each weight, over prefill and step.

    Attributes:
        weight_keys: the hash of each operator's weight, equal for equal weights of both graphs.
        channels: the channel statistics of the activations of a weight, by its key.
    """

    def __init__(self, targets: Mapping[GraphRole, list[Linear]], scales: Scales) -> None:
        self.weight_keys = {
            linear.node: weight_key(linear)
            for operators in targets.values()
            for linear in operators
        }
        self.channels: dict[bytes, Channels] = {}
        self._ranges: dict[bytes, Range] = {}
        for role in (GraphRole.STEP, GraphRole.PREFILL):
            ranges, channels = scales.of(role), scales.channels_of(role)
            for linear in targets.get(role, ()):
                name, key = str(linear.activation.name), self.weight_keys[linear.node]
                if name in ranges:
                    previous_range = self._ranges.get(key, ranges[name])
                    self._ranges[key] = previous_range.union(ranges[name])
                if name in channels:
                    previous_channels = self.channels.get(key, channels[name])
                    self.channels[key] = _joined_channels(previous_channels, channels[name])

    def ranges(self, targets: list[Linear]) -> dict[str, Range]:
        """Returns the range of each activation by name, joined over all uses of its weights."""
        ranges: dict[str, Range] = {}
        for linear in targets:
            activation_range = self._ranges.get(self.weight_keys[linear.node])
            if activation_range is not None:
                name = str(linear.activation.name)
                ranges[name] = ranges.get(name, activation_range).union(activation_range)
        return ranges


def _joined_channels(first: Channels, second: Channels) -> Channels:
    """Returns the larger magnitudes of both, and the means of the first (the step runs most)."""
    return Channels(np.maximum(first.largest, second.largest), first.mean)


def _scale_channels_in_all_graphs(
    graphs: Mapping[GraphRole, ir.Model],
    targets: Mapping[GraphRole, list[Linear]],
    statistics: _ActivationStatistics,
    ranges: Mapping[GraphRole, dict[str, Range]],
    weight_type: LowBitType,
    max_block_size: int | None,
) -> None:
    """Scales activations and weights against each other, with the same scales in all graphs."""
    for group in products_by_activation(targets[GraphRole.STEP]).values():
        group_keys = {statistics.weight_keys[linear.node] for linear in group}
        keys_with_channels = (key for key in group_keys if key in statistics.channels)
        channels = next((statistics.channels[key] for key in keys_with_channels), None)
        if channels is None:
            continue
        quantization = ProductQuantization(
            partial(
                _weight_round_trip,
                weight_type=weight_type,
                block_size=_block_size_for(group[0], max_block_size),
            ),
            quantizes_activations=max_block_size is None,
        )
        weights = [linear.matrix for linear in group]
        min_gain = required_gain(group, _GAIN_OF_MUL)
        scale = best_channel_scale(weights, channels, quantization, min_gain)
        if scale is None:
            continue
        for role, model in graphs.items():
            operators = [
                linear
                for linear in targets[role]
                if statistics.weight_keys[linear.node] in group_keys
            ]
            for name, sharing in products_by_activation(operators).items():
                scaled = scale_channels(model.graph, sharing, scale)
                if name in ranges[role]:
                    scaled_range = range_after_scaling(ranges[role][name], channels, scale)
                    ranges[role][str(scaled.name)] = scaled_range


def _weight_round_trip(
    weight: NDArray[np.float32], weight_type: LowBitType, block_size: int | None
) -> NDArray[np.float32]:
    if block_size is None:
        return round_trip_per_channel(weight, weight_type)
    return quantize_in_blocks("weight", weight, block_size, 0, weight_type).restored


class _WeightStore:
    """Stores weights in low-bit blocks; a weight that both graphs have is rounded once.

    Args:
        weight_type: number type of the weights.
        max_block_size: largest number of weights that share a scale; None for one scale per
            channel, with quantized activations.
        moments: second moments of the inputs of the weights to round with error feedback.
    """

    def __init__(
        self, weight_type: LowBitType, max_block_size: int | None, moments: WeightMoments
    ) -> None:
        self._weight_type = weight_type
        self._max_block_size = max_block_size
        self._moments = moments
        self._rounded: dict[bytes, QuantizedWeight] = {}

    def store(self, graph: ir.Graph, linear: Linear) -> None:
        """Stores the weight of an operator in place; int4 needs blocks, and is int8 without.

        Raises:
            CalibrationError: the weight is not finite.
        """
        block_size = _block_size_for(linear, self._max_block_size)
        if self._weight_type is INT4 and block_size is None:
            store_weight(graph, linear, INT8)
            return
        store_weight(
            graph,
            linear,
            self._weight_type,
            block_size,
            quantizes_activations=self._max_block_size is None,
            rounded=self._rounded_with_feedback(linear, block_size),
        )

    def _rounded_with_feedback(
        self, linear: Linear, block_size: int | None
    ) -> QuantizedWeight | None:
        """Returns the rounded weight of an operator; None where its inputs have no moments."""
        key = weight_key(linear)
        if self._weight_type is not INT4 or block_size is None or key not in self._moments:
            return None
        if key not in self._rounded:
            check_finite(str(linear.weight.name), linear.matrix)
            self._rounded[key] = round_with_error_feedback(
                linear.matrix, self._moments[key].mean, block_size, INT4
            )
        rounded = self._rounded[key]
        return rounded if linear.channel_axis == 1 else rounded.transposed


def _store_to_nearest(graph: ir.Graph, linear: Linear, low_bit_type: LowBitType) -> None:
    """Stores a weight in large blocks, in place; int4 needs blocks, and is int8 without."""
    block_size = largest_block_size(linear.summed_size, INT8_BLOCK)
    store_weight(graph, linear, INT8 if block_size is None else low_bit_type, block_size)


def _block_size_for(linear: Linear, max_block_size: int | None) -> int | None:
    if max_block_size is None:
        return None
    return largest_block_size(linear.summed_size, max_block_size)


def _matrix_products(model: ir.Model) -> Iterator[Linear]:
    return (linear for linear in linear_operators(model.graph) if linear.node.op_type != "Conv")

"""Scaling the channels of activations and weights against each other, so that both round better.

y = x W = (x / s) (s W) holds for any positive s, one number per channel of x. Activations with a
few large channels quantize better after division (SmoothQuant, https://arxiv.org/abs/2211.10438);
of a weight that is stored in 4 bits those rows matter that meet large activations, and multiplied
they lose less (AWQ, https://arxiv.org/abs/2306.00978). Both choose s by a search along one
exponent; here the error that a choice leaves is estimated from what calibration saw of every
channel, and a choice that gains little is not made. The division disappears into a normalization
where nothing else takes its output, and is one Mul otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.constants import constant, describe
from hybrid_deploy.calibration.points import Linear
from hybrid_deploy.calibration.scales import Channels

FloatArray = NDArray[np.float32]
Weigher = Callable[[FloatArray], FloatArray]
"""Gives what is restored of a weight (summed axis, channels) after it was stored."""

_EXPONENTS = np.linspace(0.05, 1, 20)
_LEAST_GAIN, _LEAST_GAIN_OF_A_MUL = 0.05, 0.5
_INT8_MAX = 127
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class Storage:
    """How a product is quantized, as far as the choice of scales has to know.

    Attributes:
        restored: what the stored weight becomes.
        activations: whether activations are rounded to int8 too.
    """

    restored: Weigher
    activations: bool


def best_scaling(
    weights: Sequence[FloatArray],
    channels: Channels,
    storage: Storage,
    least_gain: float,
) -> FloatArray | None:
    """Chooses the scale of every channel of a tensor.

    Args:
        weights: the matrices (summed axis, channels) that the tensor is multiplied with.
        channels: what it was seen to hold.
        storage: how all of it is quantized.
        least_gain: share of the error that a scaling has to take away, as `least_gain` gives it.

    Returns:
        s (summed axis,) float32, positive; None where no scaling gains so much.
    """
    weight = np.concatenate(weights, axis=1)
    ones = np.ones(len(weight), np.float32)
    errors = [(_error(weight, channels, ones, storage), ones)]
    for exponent in _EXPONENTS:
        scale = _candidate(weight, channels, float(exponent), storage)
        errors.append((_error(weight, channels, scale, storage), scale))
    best, scale = min(errors, key=lambda pair: pair[0])
    return scale if best < (1 - least_gain) * errors[0][0] else None


def least_gain(group: Sequence[Linear]) -> float:
    """Gives what a scaling must gain: more where the division is an operator of its own."""
    return _LEAST_GAIN if _norm_of(group) is not None else _LEAST_GAIN_OF_A_MUL


def scale_channels(graph: ir.Graph, group: Sequence[Linear], scale: FloatArray) -> ir.Value:
    """Divides a tensor by a scale and multiplies the weights that it meets, in place.

    Args:
        graph: that all is in.
        group: operators that share their activation; others that take it are left alone.
        scale: (summed axis,).

    Returns:
        The tensor that the operators take now.
    """
    activation = group[0].activation
    for linear in group:
        _scale_weight(graph, linear, scale)
    norm = _norm_of(group)
    if norm is not None:
        _divide_norm(graph, norm, scale)
        return activation
    name = f"{activation.name}_scaled"
    number = sum(str(node.outputs[0].name).startswith(name) for node, _ in activation.uses())
    name = f"{name}_{number}" if number else name
    factor = constant(graph, f"{name}_factor", (1 / scale).astype(np.float32))
    divide = ir.node("Mul", [activation, factor], name=name)
    scaled = divide.outputs[0]
    describe(scaled, name, activation, ir.DataType.FLOAT)
    graph.insert_before(group[0].node, divide)
    for linear in group:
        linear.node.replace_input_with(0, scaled)
    return scaled


def _candidate(
    weight: FloatArray, channels: Channels, exponent: float, storage: Storage
) -> FloatArray:
    if storage.activations:
        large = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny)
        scale = channels.largest**exponent / large ** (1 - exponent)
    else:
        scale = channels.mean**exponent
    dead = ~np.isfinite(scale) | (scale <= 0) | (channels.largest <= 0)
    scale = np.where(dead, 1.0, scale)
    alive = scale[~dead]
    if alive.size:  # about one, so that neither side drifts out of range
        scale = np.where(dead, 1.0, scale / np.sqrt(alive.max() * alive.min()))
    return np.clip(scale, 1e-3, 1e3).astype(np.float32)


def _error(weight: FloatArray, channels: Channels, scale: FloatArray, storage: Storage) -> float:
    """Estimates the squared error of the product, channels taken as independent."""
    scaled = weight * scale[:, None]
    lost = storage.restored(scaled) / scale[:, None] - weight
    error = float(
        (channels.mean.astype(np.float64) ** 2 * (lost.astype(np.float64) ** 2).sum(1)).sum()
    )
    if storage.activations:
        step = float((channels.largest / scale).max()) / _INT8_MAX
        error += step**2 / 12 * float((scaled.astype(np.float64) ** 2).sum())
    return error


def _scale_weight(graph: ir.Graph, linear: Linear, scale: FloatArray) -> None:
    weight = linear.weight
    assert weight.const_value is not None
    along = scale[:, None] if linear.channel_axis == 1 else scale[None, :]
    array = (weight.const_value.numpy() * along).astype(np.float32)
    linear.node.replace_input_with(1, constant(graph, f"{weight.name}_scaled", array))


def _is_all_of(value: ir.Value, users: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(
        node in users and index == 0 for node, index in value.uses()
    )


def _norm_of(group: Sequence[Linear]) -> ir.Node | None:
    """Gives the normalization that can divide for a group; None if there is none, or not alone."""
    activation = group[0].activation
    norm = activation.producer()
    if norm is None or norm.op_type not in _NORMS:
        return None
    if not _is_all_of(activation, {linear.node for linear in group}):
        return None
    size = group[0].weight_shape[1 - group[0].channel_axis]
    constants = [value.const_value for value in norm.inputs[1:] if value is not None]
    fits = all(one is not None and one.numpy().shape == (size,) for one in constants)
    return norm if fits else None


def _divide_norm(graph: ir.Graph, norm: ir.Node, scale: FloatArray) -> None:
    """Divides what a normalization multiplies with and adds."""
    for index, parameter in enumerate(norm.inputs[1:], start=1):
        if parameter is not None and parameter.const_value is not None:
            array = (parameter.const_value.numpy() / scale).astype(np.float32)
            name = f"{norm.outputs[0].name}_{parameter.name}_scaled"
            norm.replace_input_with(index, constant(graph, name, array))

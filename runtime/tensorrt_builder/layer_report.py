"""Summarizes the layers of a parsed network and the kernels of the engine that was built of it.

TensorRT's `EngineInspector` reads a loaded engine, and only the GPU of the engine can load it. The
builder's log needs no GPU: with detailed profiling verbosity TensorRT-RTX writes every layer of the
finished engine into it, and this module parses these lines. TensorRT writes other lines, so its
summaries have no `kernels`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from hybrid_deploy.contract import cache_of, is_next_cache

FACT_PREFIXES = ("Layers:", "Total Activation Memory:", "Total Weights Memory:")
"""Beginnings of the log messages that describe the finished engine."""

_KERNEL = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<operands>.*), Outputs: ")
_OPERAND = re.compile(r"Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")
_NAMES = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16"}
_INDEX_TYPES = {"bool", "int32", "int64"}


class Kernels(msgspec.Struct, frozen=True):
    """The kernels of one kind that compute in the same types.

    Attributes:
        kind: TensorRT's name of the kind: `gemm`, `correlation` (a convolution), `kgen` (fused
            elementwise operations), or `attention` for every kernel of fused attention.
        types: types of the inputs and weights, such as `fp32`, `fp16`, `int8`. The types of scales,
            biases and indices are left out if there are others.
        count: number of these kernels.
    """

    kind: str
    types: tuple[str, ...]
    count: int


class LayerSummary(msgspec.Struct, frozen=True):
    """The layers of one graph's network and engine.

    Attributes:
        parsed: number of layers of the parsed network, by type.
        attentions: number of native attention layers in the parsed network.
        caches_in_place: input names of the caches that a call updates in place: their input and
            output must be bound to one address.
        caches_copied: input names of the caches that a call writes to a second buffer: the two
            buffers are used in turn.
        kernels: kernels of the engine; empty if the log does not list them.
        weight_bytes: size of the weights in the engine; None if the log does not state it.
        activation_bytes: size of the buffers of one execution context on the GPU; None if the log
            does not state it.
    """

    parsed: dict[str, int]
    attentions: int
    caches_in_place: tuple[str, ...]
    caches_copied: tuple[str, ...]
    kernels: tuple[Kernels, ...] = ()
    weight_bytes: int | None = None
    activation_bytes: int | None = None


def summarize(network: Any, facts: Sequence[str]) -> LayerSummary:
    """Returns the summary of a network and of the engine that was built of it.

    Args:
        network: parsed `INetworkDefinition`.
        facts: log messages of the build that begin with one of `FACT_PREFIXES`.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    parsed = Counter(layer.type.name for layer in layers)
    returned = {network.get_output(index).name for index in range(network.num_outputs)}
    written = {_first_output(layer) for layer in layers if layer.type.name == "KV_CACHE_UPDATE"}
    caches = {name for name in returned if is_next_cache(name)}
    return LayerSummary(
        parsed=dict(sorted(parsed.items())),
        attentions=parsed["ATTENTION_INPUT"],
        caches_in_place=_inputs(caches & written),
        caches_copied=_inputs(caches - written),
        kernels=_kernels(facts),
        weight_bytes=_bytes(facts, "Total Weights Memory"),
        activation_bytes=_bytes(facts, "Total Activation Memory"),
    )


def _inputs(caches: set[str]) -> tuple[str, ...]:
    return tuple(sorted(map(cache_of, caches)))


def _first_output(layer: Any) -> str:
    return str(layer.get_output(0).name)


def _kernels(facts: Sequence[str]) -> tuple[Kernels, ...]:
    counts = Counter(kernel for fact in facts for kernel in _kernels_in(fact))
    return tuple(Kernels(kind, types, count) for (kind, types), count in sorted(counts.items()))


def _kernels_in(fact: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the kind and operand types of every layer, except layers that compute shapes only."""
    for line in fact.splitlines():
        if (kernel := _KERNEL.match(line)) and "Datatype:" in line:
            kind = "attention" if "mha" in kernel["name"].lower() else kernel["kind"]
            yield kind, _types(kernel["operands"])


def _types(operands: str) -> tuple[str, ...]:
    typed = {
        (_NAMES.get(operand["dtype"], operand["dtype"].lower()), _is_matrix(operand["shape"]))
        for operand in _OPERAND.finditer(operands)
    }
    numbers = {operand for operand in typed if operand[0] not in _INDEX_TYPES}
    matrices = {operand for operand in numbers if operand[1]}
    return tuple(sorted({name for name, _ in matrices or numbers or typed}))


def _is_matrix(shape: str) -> bool:
    return sum(size not in ("", "1") for size in shape.split(",")) > 1


def _bytes(facts: Sequence[str], title: str) -> int | None:
    matches = [re.match(rf"{title}: (\d+) bytes", fact) for fact in facts]
    return next((int(match[1]) for match in reversed(matches) if match), None)

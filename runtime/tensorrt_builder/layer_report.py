"""Returns what TensorRT made of a graph: its layers as parsed, its kernels as compiled.

An `EngineInspector` reads a loaded engine, and loading needs the GPU that the engine is for. The
builder's log needs none: with detailed profiling verbosity TensorRT-RTX lists there every layer of
the finished engine, which is parsed here. Other flavours write it differently; their engines have
no `kernels`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from hybrid_deploy.contract import cache_of, is_next_cache

FACT_PREFIXES = ("Layers:", "Total Activation Memory:", "Total Weights Memory:")
"""How the messages of a build begin that describe the finished engine."""

_KERNEL = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<operands>.*), Outputs: ")
_OPERAND = re.compile(r"Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")
_NAMES = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16"}
_INDEX_TYPES = {"bool", "int32", "int64"}


class Kernels(msgspec.Struct, frozen=True):
    """Kernels of one kind that compute in the same types.

    Attributes:
        kind: TensorRT's word: `gemm`, `correlation` (a convolution), `kgen` (fused elementwise
            work), `attention` (any kernel of fused attention).
        types: Of the inputs and weights, `fp32`, `fp16`, `int8`; scales, biases and indices do
            not count where there is anything else.
        count: How many.
    """

    kind: str
    types: tuple[str, ...]
    count: int


class LayerSummary(msgspec.Struct, frozen=True):
    """What TensorRT made of one graph.

    Attributes:
        parsed: Layers of the parsed network by type.
        attentions: Native attention layers among them.
        caches_in_place: Names of the inputs that are caches written where they lie: input and
            output must be bound to one address.
        caches_copied: Names of those that a call writes to a second buffer: two are used in turn.
        kernels: What the engine runs; empty where TensorRT does not tell.
        weight_bytes: Weights in the engine; None where TensorRT does not tell.
        activation_bytes: Device memory that one execution context takes; None likewise.
    """

    parsed: dict[str, int]
    attentions: int
    caches_in_place: tuple[str, ...]
    caches_copied: tuple[str, ...]
    kernels: tuple[Kernels, ...] = ()
    weight_bytes: int | None = None
    activation_bytes: int | None = None


def summarize(network: Any, facts: Sequence[str]) -> LayerSummary:
    """Describes a parsed `INetworkDefinition` and what the log of its build says of the engine."""
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
    counts = Counter(kernel for fact in facts for kernel in _listed(fact))
    return tuple(Kernels(kind, types, count) for (kind, types), count in sorted(counts.items()))


def _listed(fact: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields kind and operand types of every layer that computes; shape calls do not."""
    for line in fact.splitlines():
        if (found := _KERNEL.match(line)) and "Datatype:" in line:
            kind = "attention" if "mha" in found["name"].lower() else found["kind"]
            yield kind, _types(found["operands"])


def _types(operands: str) -> tuple[str, ...]:
    every = {
        (_NAMES.get(found["dtype"], found["dtype"].lower()), _is_matrix(found["shape"]))
        for found in _OPERAND.finditer(operands)
    }
    numbers = {operand for operand in every if operand[0] not in _INDEX_TYPES}
    matrices = {operand for operand in numbers if operand[1]}
    return tuple(sorted({name for name, _ in matrices or numbers or every}))


def _is_matrix(shape: str) -> bool:
    return sum(size not in ("", "1") for size in shape.split(",")) > 1


def _bytes(facts: Sequence[str], title: str) -> int | None:
    found = [re.match(rf"{title}: (\d+) bytes", fact) for fact in facts]
    return next((int(match[1]) for match in reversed(found) if match), None)

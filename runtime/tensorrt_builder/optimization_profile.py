"""Optimization profiles: the shapes that an engine supports, from the ranges of a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import DimRange, GraphSpec, TensorSpec
from hybrid_deploy.errors import BuildError, UsageError

OptimizationProfile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, typical and largest shape of every input with a symbolic dimension, by input name."""


def narrow_dims(bundle: Bundle, ranges: Iterable[str]) -> Bundle:
    """Returns a copy of an opened bundle with narrower ranges of its dimensions.

    The files of the bundle do not change.

    Args:
        bundle: the opened bundle.
        ranges: one text for each dimension to change, `NAME=MIN:TYPICAL:MAX` such as `batch=1:4:8`.
            `batch=1` means `batch=1:1:1`: the engine then supports this size only.

    Raises:
        UsageError: a text has another form, names an unknown dimension, or exceeds the range that
            the bundle was exported for.
    """
    dims = dict(bundle.manifest.dims)
    for text in ranges:
        name, narrower = _parse_range(text)
        exported = bundle.manifest.dims.get(name)
        if exported is None:
            names = ", ".join(bundle.manifest.dims)
            raise UsageError(f"--profile {text}: the bundle has {names}, no {name!r}")
        if narrower.min < exported.min or narrower.max > exported.max:
            raise UsageError(
                f"--profile {text}: the bundle was exported for {name} "
                f"{exported.min}..{exported.max}; stay within, or export it again"
            )
        multiple = exported.multiple
        if any(size % multiple for size in (narrower.min, narrower.typical, narrower.max)):
            raise UsageError(f"--profile {text}: {name} takes multiples of {multiple} only")
        dims[name] = msgspec.structs.replace(narrower, multiple=multiple)
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, dims=dims))


def _parse_range(text: str) -> tuple[str, DimRange]:
    name, _, sizes = text.partition("=")
    try:
        numbers = [int(size) for size in sizes.split(":")]
        smallest, typical, largest = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        smallest, typical, largest = 0, 0, 0
    if not 1 <= smallest <= typical <= largest:
        raise UsageError(
            f"--profile {text}: expected NAME=MIN:TYPICAL:MAX with MIN <= TYPICAL <= MAX, "
            "such as batch=1:4:8, or one size, such as batch=1"
        )
    return name.strip(), DimRange(smallest, typical, largest)


def optimization_profile_of(bundle: Bundle, spec: GraphSpec, graph: str) -> OptimizationProfile:
    """Returns the shapes that the engine of a graph must support.

    Args:
        bundle: bundle of the graph.
        spec: the graph.
        graph: name of the graph, for messages.

    Raises:
        BuildError: the manifest has no range for one of the graph's dimensions.
    """
    dims = bundle.manifest.dims
    names = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    if missing := sorted(names - dims.keys()):
        raise BuildError(
            f"{graph}: the manifest has no range for {', '.join(missing)}; export it again"
        )

    def shape(tensor: TensorSpec, bound: str) -> tuple[int, ...]:
        return tuple(getattr(dims[d], bound) if isinstance(d, str) else d for d in tensor.shape)

    return {
        tensor.name: (shape(tensor, "min"), shape(tensor, "typical"), shape(tensor, "max"))
        for tensor in spec.inputs
        if any(isinstance(dim, str) for dim in tensor.shape)
    }


def fix_single_sizes(network: Any, shapes: OptimizationProfile) -> OptimizationProfile:
    """Fixes the dimensions of a parsed `INetworkDefinition` that have a single size.

    TensorRT then compiles for this size; a network whose dimensions are all fixed is static.

    Returns:
        The optimization profile of the inputs that still vary.
    """
    varying = dict(shapes)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in shapes:
            smallest, _, largest = shapes[tensor.name]
            tensor.shape = tuple(
                low if low == high else -1 for low, high in zip(smallest, largest, strict=True)
            )
            if smallest == largest:
                del varying[tensor.name]
    return varying

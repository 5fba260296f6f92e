"""Which shapes an engine serves: the ranges of a bundle's named dimensions, or narrower ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import DimRange, GraphSpec, TensorSpec
from hybrid_deploy.errors import BuildError, UsageError

OptimizationProfile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, typical and largest shape of every input that has a symbolic dimension."""


def narrow_dims(bundle: Bundle, ranges: Iterable[str]) -> Bundle:
    """Returns the bundle with other ranges of its dimensions, `batch=1:4:8` (min:typical:max).

    `batch=1` is short for `batch=1:1:1`: the engine then serves that size alone. Only the opened
    bundle changes, never its files. Dimensions that are not named stay.

    Raises:
        UsageError: a text is no such range, or not within the range that the bundle was exported
            for.
    """
    dims = dict(bundle.manifest.dims)
    for text in ranges:
        name, wanted = _range(text)
        exported = bundle.manifest.dims.get(name)
        if exported is None:
            known = ", ".join(bundle.manifest.dims)
            raise UsageError(f"--profile {text}: the bundle has {known}, no {name!r}")
        if wanted.min < exported.min or wanted.max > exported.max:
            raise UsageError(
                f"--profile {text}: the bundle was exported for {name} "
                f"{exported.min}..{exported.max}; stay within, or export it again"
            )
        dims[name] = wanted
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, dims=dims))


def _range(text: str) -> tuple[str, DimRange]:
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
    """Returns the shapes that a graph's engine must serve; `graph` names it in messages.

    Raises:
        BuildError: the manifest has no range for one of the graph's dimensions.
    """
    dims = bundle.manifest.dims
    names = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    if missing := sorted(names - dims.keys()):
        raise BuildError(
            f"{graph}: the manifest gives no range for {', '.join(missing)}; export it again"
        )

    def shape(tensor: TensorSpec, bound: str) -> tuple[int, ...]:
        return tuple(getattr(dims[d], bound) if isinstance(d, str) else d for d in tensor.shape)

    return {
        tensor.name: (shape(tensor, "min"), shape(tensor, "typical"), shape(tensor, "max"))
        for tensor in spec.inputs
        if any(isinstance(dim, str) for dim in tensor.shape)
    }


def fix_single_sizes(network: Any, profile: OptimizationProfile) -> OptimizationProfile:
    """Makes dimensions of a single size constants of a parsed `INetworkDefinition`.

    TensorRT then compiles for that very size, and a network without other dimensions is static.

    Returns:
        The profile of those inputs that still vary.
    """
    varying = dict(profile)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in profile:
            smallest, _, largest = profile[tensor.name]
            tensor.shape = tuple(
                low if low == high else -1 for low, high in zip(smallest, largest, strict=True)
            )
            if smallest == largest:
                del varying[tensor.name]
    return varying

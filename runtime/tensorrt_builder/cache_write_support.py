"""The table of TensorRT versions and the forms of cache writes that they support.

native    TensorScatter becomes a KV cache layer: a cache and its update share one buffer
scatter   ScatterElements, from older opsets: a cache has two buffers, used in turn

The opset of a variant decides the form: `export --opset 21` and `--opset 18` write `scatter`. With
opset 21, all quantized precisions except bf16 are possible. `LayerSummary.caches_in_place` and
`LayerSummary.caches_copied` name the caches of a built engine by their form.
"""

from __future__ import annotations

import re
from enum import Enum

from hybrid_deploy.bundle.manifest import Variant
from hybrid_deploy.contract import NATIVE_OPSET, is_next_cache, is_recurrent
from hybrid_deploy.errors import BuildError
from hybrid_deploy.target import Flavour


class CacheWrite(str, Enum):
    """The form in which a graph writes its caches; the module's docstring describes both."""

    NATIVE = "native"
    SCATTER = "scatter"


_SINCE = {
    Flavour.TENSORRT: {CacheWrite.SCATTER: (10, 3), CacheWrite.NATIVE: (10, 15)},
    Flavour.RTX: {CacheWrite.SCATTER: (1, 4), CacheWrite.NATIVE: (1, 4)},
}
"""First version that supports each form.

TensorRT: by its release notes; 10.3 belongs to JetPack 6.1, the oldest supported JetPack.
TensorRT-RTX: 1.4 to 1.7 built both forms; PyPI has no older version.
"""


def cache_write_of(variant: Variant) -> CacheWrite | None:
    """Returns the form of a variant's cache writes; None if it has no caches."""
    if not any(is_next_cache(t.name) and not is_recurrent(t.name) for t in variant.step.outputs):
        return None
    return CacheWrite.NATIVE if variant.opset >= NATIVE_OPSET else CacheWrite.SCATTER


def supported_cache_writes(flavour: Flavour, version: str) -> frozenset[CacheWrite]:
    """Returns the forms that a version such as `10.3.0.26` supports; none if it is too old."""
    return frozenset(form for form, since in _SINCE[flavour].items() if _number(version) >= since)


def check_cache_write(variant: Variant, graph: str, flavour: Flavour, version: str) -> None:
    """Refuses a graph whose cache writes this TensorRT does not support, before a long build.

    Args:
        variant: variant of the graph.
        graph: name of the graph, for the message.
        flavour: flavour of TensorRT.
        version: version of TensorRT.

    Raises:
        BuildError: TensorRT does not support them; the message names the export or the version
            that helps.
    """
    supported, form = supported_cache_writes(flavour, version), cache_write_of(variant)
    product, since = f"{flavour.product} {version}", _SINCE[flavour]
    if not supported:
        oldest = _text(min(since.values()))
        raise BuildError(f"{graph}: {product} is too old; install {oldest} or newer")
    if form is not None and form not in supported:
        raise BuildError(
            f"{graph}: {product} cannot write caches in place, as this variant of opset "
            f"{variant.opset} does; export the model with --opset 21, or install "
            f"{_text(since[form])} or newer"
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _text(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))

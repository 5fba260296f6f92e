"""Which form of the cache writes a version of TensorRT takes: the one table of versions.

native    TensorScatter becomes a KV cache layer: a cache and its update share one buffer
scatter   ScatterElements, as older ONNX has it: two buffers, used in turn

The opset of a variant says which form its graphs have: `export --opset 21` and 18 write `scatter`,
of which 21 knows all quantized forms but bf16. Of a built engine, `caches_in_place` and
`caches_copied` of its `LayerSummary` name the caches of either kind.
"""

from __future__ import annotations

import re
from enum import Enum

from hybrid_deploy.bundle.manifest import Variant
from hybrid_deploy.contract import NATIVE_OPSET, is_next_cache, is_recurrent
from hybrid_deploy.errors import BuildError
from hybrid_deploy.target import Flavour


class CacheWrite(str, Enum):
    """How a graph writes its caches."""

    NATIVE = "native"
    SCATTER = "scatter"


_SINCE = {
    Flavour.TENSORRT: {CacheWrite.SCATTER: (10, 3), CacheWrite.NATIVE: (10, 15)},
    Flavour.RTX: {CacheWrite.SCATTER: (1, 4), CacheWrite.NATIVE: (1, 4)},
}
"""First version with each form.

TensorRT: its release notes, and JetPack 6.1 as the oldest that is served. TensorRT-RTX: 1.4 to 1.7
built both forms; there is no older one to install.
"""


def cache_write_of(variant: Variant) -> CacheWrite | None:
    """Returns the form of a variant's cache writes; None where it has no caches, only states."""
    if not any(is_next_cache(t.name) and not is_recurrent(t.name) for t in variant.step.outputs):
        return None
    return CacheWrite.NATIVE if variant.opset >= NATIVE_OPSET else CacheWrite.SCATTER


def supported_cache_writes(flavour: Flavour, version: str) -> frozenset[CacheWrite]:
    """Returns the forms that a version takes, `10.3.0.26`; none if it is too old altogether."""
    return frozenset(form for form, since in _SINCE[flavour].items() if _number(version) >= since)


def check_cache_write(variant: Variant, graph: str, flavour: Flavour, version: str) -> None:
    """Refuses a graph that this TensorRT cannot take, before a long build; `graph` names it.

    Raises:
        BuildError: it cannot; the message says what to export or install.
    """
    taken, form = supported_cache_writes(flavour, version), cache_write_of(variant)
    product, since = f"{flavour.product} {version}", _SINCE[flavour]
    if not taken:
        oldest = _words(min(since.values()))
        raise BuildError(f"{graph}: {product} is too old; install {oldest} or newer")
    if form is not None and form not in taken:
        raise BuildError(
            f"{graph}: {product} cannot write caches in place, as this variant of opset "
            f"{variant.opset} does; export the model with --opset 21, or install "
            f"{_words(since[form])} or newer"
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _words(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))

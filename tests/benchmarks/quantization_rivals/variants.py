"""Adds graphs of other quantizers to a bundle as variants, and describes variants."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, staged_variant
from hybrid_deploy.bundle.manifest import Precision
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.files import WEIGHTS_FILE
from tests.benchmarks.quantization_rivals.recording import ROLES


def add_variant(
    bundle: Bundle,
    source: str,
    name: str,
    precision: Precision,
    encoder: Path,
    step: Path,
    *,
    force: bool = False,
) -> Bundle:
    """Adds a variant with the given encoder and step, and with a copy of `source`'s prefill graph.

    Args:
        bundle: bundle that gets the variant.
        source: name of the variant whose graphs were quantized.
        name: name of the new variant.
        precision: precision of the new variant.
        encoder: encoder graph; its inputs and outputs must be those of the source's encoder.
        step: step graph; its inputs and outputs must be those of the source's step.
        force: whether to replace a variant of that name.
    """
    variant = bundle.variant(source)
    with staged_variant(bundle, name, force=force) as staged:
        prefill = bundle.graph_path(source, GraphRole.PREFILL)
        for file in (encoder, step, prefill, prefill.parent / WEIGHTS_FILE):
            shutil.copyfile(file, staged.folder / file.name)
        assert variant.prefill is not None
        staged.variant = msgspec.structs.replace(
            variant,
            precision=precision,
            encoder=msgspec.structs.replace(variant.encoder, file=f"{staged.home}/{encoder.name}"),
            step=msgspec.structs.replace(variant.step, file=f"{staged.home}/{step.name}"),
            prefill=msgspec.structs.replace(variant.prefill, file=f"{staged.home}/{prefill.name}"),
            beam_step=None,
            provenance=name,
        )
    return open_bundle(bundle.folder)


def size_bytes(bundle: Bundle, variant: str) -> int:
    """Returns the bytes of encoder and step with their weights; shared weights count once."""
    total, weights = 0, set()
    for path in (bundle.graph_path(variant, role) for role in ROLES):
        total += path.stat().st_size
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if uses_external_data(tensor):
                info = ExternalDataInfo(tensor)
                weights.add((path.parent / info.location, info.offset, info.length))
    return total + sum(length or 0 for _, _, length in weights)


def operators(bundle: Bundle, variant: str, role: GraphRole) -> dict[str, int]:
    """Returns the number of a graph's nodes, by operator."""
    counts: dict[str, int] = {}
    for node in onnx.load(bundle.graph_path(variant, role), load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts

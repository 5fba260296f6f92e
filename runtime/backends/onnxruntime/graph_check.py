"""Loads the decoder graphs of a variant, also those that short prompts and greedy decoding skip."""

from __future__ import annotations

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import (
    loading_errors,
    make_session,
    unsafe_optimizers,
)
from hybrid_deploy.runtime.backends.onnxruntime.verified_graphs import VerifiedGraphs

_ALWAYS_LOADED = frozenset({GraphRole.ENCODER, GraphRole.REFINE})


def check_decoder_graphs(bundle: Bundle, variant: str) -> None:
    """Checks that ONNX Runtime loads the decoder graphs of a variant on the CPU.

    A backend loads prefill and beam step at their first use, and the step not at all where the beam
    step replaces it. A graph that is broken would be found by the first user of a longer prompt.

    Raises:
        BundleError: a file is missing or has changed.
        BackendError: ONNX Runtime cannot load a graph.
    """
    disabled = unsafe_optimizers(bundle.variant(variant).precision)
    specs = {r: spec for r, spec in bundle.graphs(variant).items() if r not in _ALWAYS_LOADED}
    with VerifiedGraphs(bundle, specs).loading(list(specs)) as graphs:
        for role, graph in graphs.items():
            with loading_errors(str(bundle.graph_path(variant, role))):
                make_session(graph, threads=1, disabled_optimizers=disabled)

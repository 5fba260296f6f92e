"""The float graphs of a bundle, as calibration runs them and quantization rewrites them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.graphs.batchnorm_folding import fold_batchnorm
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole, Head
from hybrid_deploy.errors import UsageError
from hybrid_deploy.onnx_graphs.files import load_graphs


def prepared_graphs(bundle: Bundle, variant: str) -> dict[GraphRole, ir.Model]:
    """Loads the graphs of a float variant in the form that the passes expect.

    Returns:
        The graphs by role: constants are initializers, batch normalization is folded.
    """
    graphs = load_graphs(bundle, variant)
    for model in graphs.values():
        LiftConstantsToInitializersPass()(model)
        fold_batchnorm(model)
    return graphs


def check_float_variant(bundle: Bundle, variant: str) -> None:
    """Checks that a variant can be calibrated and quantized.

    Raises:
        UsageError: the variant is already quantized, or does not return logits, or the bundle has
            no start tokens.
        InputError: the bundle has no variant of that name.
    """
    spec = bundle.variant(variant)
    if (spec.precision.encoder, spec.precision.decoder) != (FLOAT_VARIANT, FLOAT_VARIANT):
        raise UsageError(
            f"variant {variant} of {bundle.folder} is already quantized "
            f"(encoder {spec.precision.encoder}, decoder {spec.precision.decoder}); "
            f"quantize {FLOAT_VARIANT}"
        )
    if spec.head is not Head.LOGITS:
        raise UsageError(
            f"variant {variant} of {bundle.folder} returns {spec.head.value} in "
            "place of the logits; export it with --head logits to quantize it"
        )
    if not bundle.manifest.generation.start_tokens:
        raise UsageError(
            f"{bundle.folder} has no start tokens, so there is nothing to decode samples with; "
            "export it with --start"
        )

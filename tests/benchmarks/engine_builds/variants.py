"""Every variant that TensorRT could be given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.recipes import recipe_for

FLOAT = "fp32"
PRECISIONS = ("fp16", "bf16", "int8", "int8-full", "int8-weights", "int4-weights", "fp8")
_WITHOUT_OTHER_FLOATS = ("fp16", "bf16")


def make_variants(bundle: Path, samples: Path, precisions: Sequence[str] = PRECISIONS) -> list[str]:
    """Adds every precision that the bundle's opset knows, quantized ones with both kinds of floats.

    Args:
        bundle: it has the float variant alone.
        samples: folder of inputs to calibrate with.
        precisions: which.

    Returns:
        The names of the variants that were added.
    """
    names = []
    opset = open_bundle(bundle).variant(FLOAT).opset
    for precision in precisions:
        for floats in (FLOAT,) if precision in _WITHOUT_OTHER_FLOATS else (FLOAT, "fp16"):
            if recipe_for(precision, floats=floats).min_opset <= opset:
                names.append(quantize_bundle(bundle, precision, samples, floats=floats).variant)
    return names

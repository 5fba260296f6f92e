"""Makes every variant that TensorRT can build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.recipes import recipe_for

FLOAT = "fp32"
PRECISIONS = ("fp16", "bf16", "int8", "int8-full", "int8-weights", "int4-weights", "fp8")
_FLOAT_PRECISIONS = ("fp16", "bf16")


def make_variants(bundle: Path, samples: Path, precisions: Sequence[str] = PRECISIONS) -> list[str]:
    """Adds a variant for every precision that the bundle's opset allows.

    A quantized precision is added twice, with its unquantized layers in float32 and in float16.

    Args:
        bundle: folder of a bundle that has only the float variant.
        samples: folder of inputs to calibrate with.
        precisions: names of the precisions.

    Returns:
        The names of the variants that were added.
    """
    names = []
    opset = open_bundle(bundle).variant(FLOAT).opset
    for precision in precisions:
        for floats in (FLOAT,) if precision in _FLOAT_PRECISIONS else (FLOAT, "fp16"):
            if recipe_for(precision, floats=floats).min_opset <= opset:
                names.append(quantize_bundle(bundle, precision, samples, floats=floats).variant)
    return names

"""The options with which each rival quantizes: its defaults first, then better suited ones.

Each attempt is one row of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hybrid_deploy.bundle.manifest import Precision

Rival = Literal["onnxruntime", "modelopt"]


@dataclass(frozen=True)
class Attempt:
    """One rival with one set of options.

    Attributes:
        rival: name of the library; its job module is `<rival>_job`.
        encoder: options of the job for the encoder graph; empty leaves the graph in float32.
        step: options of the job for the step graph; empty leaves the graph in float32.
    """

    rival: Rival
    encoder: str = ""
    step: str = ""

    @property
    def options(self) -> str:
        """Options of both graphs, as the table shows them."""
        if self.encoder == self.step:
            return self.encoder
        graphs = {"encoder": self.encoder, "step": self.step}
        return "; ".join(f"{name} {options or 'float'}" for name, options in graphs.items())

    @property
    def precision(self) -> Precision:
        """Precision of the variant; a backend chooses its graph optimizers by it."""
        return Precision(encoder=_mode(self.encoder), decoder=_mode(self.step))


def _mode(options: str) -> str:
    return options.split()[1] if options else "fp32"


_S8S8 = "--mode static --signed --per-channel"
_DYNAMIC = "--mode dynamic --per-channel --operators MatMul Gather"
_INT8 = "--mode int8 --method max --dq-only"
_FP8 = "--mode fp8 --method max --dq-only"

ATTEMPTS = (
    Attempt("onnxruntime", "--mode static", "--mode dynamic"),
    Attempt("onnxruntime", "--mode static", "--mode dynamic --operators MatMul Gather"),
    Attempt("onnxruntime", _S8S8, _DYNAMIC),
    Attempt("onnxruntime", f"{_S8S8} --method Percentile", _DYNAMIC),
    Attempt("onnxruntime", f"{_S8S8} --method Entropy", _DYNAMIC),
    Attempt("onnxruntime", f"{_S8S8} --operators Conv MatMul Gemm", _DYNAMIC),
    Attempt("onnxruntime", _S8S8, _S8S8),
    Attempt("onnxruntime", step="--mode int4"),
    Attempt("onnxruntime", step="--mode int4 --accuracy 4"),
    Attempt("onnxruntime", step="--mode int4 --symmetric"),
    Attempt("onnxruntime", step="--mode int4 --symmetric --qdq"),
    Attempt("onnxruntime", step="--mode int4 --algorithm hqq"),
    Attempt("onnxruntime", step="--mode int4 --algorithm k_quant"),
    Attempt("modelopt", "--mode int8", "--mode int8"),
    Attempt("modelopt", _INT8, _INT8),
    Attempt("modelopt", "--mode int8 --dq-only", "--mode int8 --vectors --dq-only"),
    Attempt("modelopt", _INT8, f"{_INT8} --vectors"),
    Attempt("modelopt", f"{_INT8} --rest fp16", f"{_INT8} --vectors --rest fp16"),
    Attempt("modelopt", step="--mode int4 --method rtn_dq"),
    Attempt("modelopt", step="--mode int4 --method rtn_dq --block 32"),
    Attempt("modelopt", step="--mode int4 --method awq_clip"),
    Attempt("modelopt", step="--mode int4 --method awq_clip --block 32"),
    Attempt("modelopt", step="--mode int4 --method awq_lite --block 32"),
    Attempt("modelopt", _FP8, f"{_FP8} --vectors"),
)

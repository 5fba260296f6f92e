"""Quantizes one graph with NVIDIA Model Optimizer, in the virtual environment of that library."""

from __future__ import annotations

import argparse
from pathlib import Path

from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

from tests.benchmarks.quantization_rivals.calls import CallReader, read_calls


def main() -> None:
    """Quantizes the file GRAPH with the recorded CALLS and writes the result to OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("graph")
    parser.add_argument("calls", type=Path)
    parser.add_argument("out")
    parser.add_argument("--mode", choices=["int8", "fp8", "int4"], required=True)
    parser.add_argument("--method", help="entropy or max; for int4: rtn_dq, awq_clip or awq_lite")
    parser.add_argument("--block", type=int, help="block size of int4; 128 by default")
    parser.add_argument(
        "--rest", choices=["fp32", "fp16"], default="fp32", help="precision of the other layers"
    )
    parser.add_argument(
        "--vectors", action="store_true", help="quantize matrix-vector products too"
    )
    parser.add_argument("--dq-only", action="store_true", help="store the weights in 8 bits")
    options = parser.parse_args()
    quantize(
        options.graph,
        quantize_mode=options.mode,
        calibration_method=options.method,
        calibration_data_reader=CallReader(read_calls(options.calls)),
        calibration_eps=["cpu"],
        high_precision_dtype=options.rest,
        block_size=options.block,
        dq_only=options.dq_only,
        output_path=options.out,
        log_level="WARNING",
        **({"enable_gemv_detection_for_trt": False} if options.vectors else {}),
    )


if __name__ == "__main__":
    main()

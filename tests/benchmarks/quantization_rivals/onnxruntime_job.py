"""Quantizes one graph with onnxruntime.quantization."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    WeightOnlyQuantConfig,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.benchmarks.quantization_rivals.calls import CallReader, read_calls


def main() -> None:
    """Quantizes the file GRAPH with the recorded CALLS and writes the result to OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("calls", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mode", choices=["static", "dynamic", "int4"], required=True)
    parser.add_argument("--signed", action="store_true", help="symmetric int8 activations")
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--method", default="MinMax", choices=[m.name for m in CalibrationMethod])
    parser.add_argument(
        "--operators", nargs="*", help="operators to quantize; default: all of the mode"
    )
    parser.add_argument("--algorithm", default="default", choices=["default", "hqq", "k_quant"])
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--symmetric", action="store_true", help="int4 without zero points")
    parser.add_argument("--accuracy", type=int, help="accuracy_level; 4 computes in int8")
    parser.add_argument("--qdq", action="store_true", help="int4 as DequantizeLinear")
    options = parser.parse_args()
    {"static": _static, "dynamic": _dynamic, "int4": _int4}[options.mode](options)


def _static(options: argparse.Namespace) -> None:
    """Inserts QuantizeLinear and DequantizeLinear, after ONNX Runtime's own pre-processing."""
    prepared = options.out.with_suffix(".prepared.onnx")
    quant_pre_process(options.graph, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        options.out,
        CallReader(read_calls(options.calls)),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=options.operators,
        activation_type=QuantType.QInt8 if options.signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=options.per_channel,
        calibrate_method=CalibrationMethod[options.method],
        extra_options={
            "ActivationSymmetric": options.signed,
            "CalibStridedMinMax": 1,  # calls have different shapes, so they cannot be stacked
        },
    )


def _dynamic(options: argparse.Namespace) -> None:
    quantize_dynamic(
        options.graph,
        options.out,
        op_types_to_quantize=options.operators,
        per_channel=options.per_channel,
        weight_type=QuantType.QInt8,
    )


def _int4(options: argparse.Namespace) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(options.graph), algo_config=_algorithm(options))
    quantizer.process()
    quantizer.model.save_model_to_file(str(options.out))


def _algorithm(options: argparse.Namespace) -> WeightOnlyQuantConfig:
    if options.algorithm == "hqq":
        return HQQWeightOnlyQuantConfig(block_size=options.block)
    if options.algorithm == "k_quant":
        return KQuantWeightOnlyQuantConfig()
    return DefaultWeightOnlyQuantConfig(
        block_size=options.block,
        is_symmetric=options.symmetric,
        accuracy_level=options.accuracy,
        quant_format=QuantFormat.QDQ if options.qdq else QuantFormat.QOperator,
    )


if __name__ == "__main__":
    main()

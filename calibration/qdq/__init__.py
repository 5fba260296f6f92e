"""Weights and activations of few bits, as quantize and dequantize operators."""

"""Edits of ONNX graphs that have nothing to do with quantization itself."""

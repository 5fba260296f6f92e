"""Passes for the kernels of ONNX Runtime's CPU, one file per pass.

TensorRT takes none of these forms.
"""

"""Compiles ONNX graphs to engines, with TensorRT or TensorRT-RTX.

The file of a graph, an optimization profile and options enter; the bytes of an engine and a summary
of its layers leave. Of the runtime, only `runtime.host` is imported here. `vendor_module` alone
imports a vendor package, and only when it is called.
"""

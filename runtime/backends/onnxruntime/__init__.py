"""ONNX Runtime backends: sessions and IO bindings, on the CPU and with the CUDA provider.

In: a bundle, a variant and `BackendOptions`. Out: an `OnnxRuntimeBackend` (CPU), or a
`DeviceBackend` over the room gpu (CUDA). No file here imports TensorRT, and the CPU's no CUDA.
"""

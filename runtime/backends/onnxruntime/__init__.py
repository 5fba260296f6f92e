"""ONNX Runtime backends: sessions and IO bindings, on the CPU and with the CUDA provider.

In: a bundle, a variant and `BackendOptions`. Out: an `OnnxRuntimeBackend` (CPU), or a
`DeviceBackend` of the room gpu (CUDA). No file here imports TensorRT; only `cuda_backend.py` and
`cuda_engine.py` import the room gpu.
"""

"""TensorRT and TensorRT-RTX: finds a variant's engines in the engine cache, loads and runs them.

In: a bundle and a variant whose engines were built before. Out: a `DeviceBackend` of the room gpu.
No file here imports ONNX Runtime; the vendor's module comes from `tensorrt_builder`.
"""

"""Generation on a GPU, for engines of any library: buffers, caches and blocks of recorded steps.

In: a `Device` and the `Engine`s of one variant. Out: a `DeviceBackend`.
Only `cuda_device.py` imports CUDA; no file here imports TensorRT or ONNX Runtime.
"""

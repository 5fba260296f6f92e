"""Rewrites to the operators of ONNX Runtime's CPU kernels, one file per pass.

In: graphs in float32 or with stored weights. Out: graphs that only ONNX Runtime's CPU backend runs;
TensorRT accepts none of them. Of calibration, it imports graphs, half_precision and qdq.
"""

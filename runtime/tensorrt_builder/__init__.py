"""From an ONNX graph to a compiled engine, for TensorRT and TensorRT-RTX alike."""

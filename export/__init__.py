"""From a trained PyTorch hybrid model to ONNX graphs that decode one token at a time."""

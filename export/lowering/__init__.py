"""From a plan to ONNX graphs: encoder, prefill and step, through torch.onnx."""

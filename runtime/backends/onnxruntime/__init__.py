"""ONNX Runtime: its sessions, its IO bindings, on the CPU and with CUDA."""

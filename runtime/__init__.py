"""Runs a bundle on the target device, with numpy and one backend.

A bundle and input files or arrays enter; tokens, texts, scores and times leave. Neither `torch` nor
`onnx` may be imported here.
"""

"""TensorRT engines in a cache folder: built in a process of their own, checked before each use.

A bundle, a variant and a target enter; paths and records of engines leave. No engine runs here, and
nothing of `runtime.backends`, `runtime.generation` and `runtime.session` is imported.
"""

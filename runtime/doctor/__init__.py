"""Checks of this machine: its hardware, its packages, and a tiny inference in every backend.

Files of the kernel, tools of NVIDIA and the backends' packages enter; rows with a verdict and a
remedy leave. Vendor libraries are imported in a process of their own only, never in the caller's.
Nothing of `runtime.backends`, `runtime.generation` and `runtime.session` is imported here.
"""

"""The facts of the machine: control groups, free RAM, large pages, the GPU and its driver.

Files of the Linux kernel and NVIDIA's driver library enter; numbers and small records leave. No
other room of `hybrid_deploy.runtime` and no vendor package is imported here.
"""

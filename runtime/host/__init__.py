"""The machine: its control groups, free RAM, GPU and driver, and the move of RAM onto large pages.

Files of the Linux kernel and NVIDIA's driver library enter; numbers and small records leave. No
other room of `hybrid_deploy.runtime` and no vendor package is imported here.
"""

"""The machine: memory, control groups, large pages, the GPU and its driver."""

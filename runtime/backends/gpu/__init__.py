"""The loop on a GPU, whatever computes: buffers, caches, recorded blocks of steps."""

"""TensorRT and TensorRT-RTX: engines found in the cache, loaded and run."""

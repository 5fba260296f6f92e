"""The device side: runs a bundle with numpy and one backend, without PyTorch."""

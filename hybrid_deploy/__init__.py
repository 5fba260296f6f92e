"""Deploy trained PyTorch hybrid models: export, quantize, build, run, profile."""

__version__ = "0.1.0"

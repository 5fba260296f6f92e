"""The command line: arguments enter, reports go to stdout, progress and errors to stderr.

No module of this room may import PyTorch, ONNX or a backend before its command runs.
"""

from hybrid_deploy.cli.entry_point import main, start

__all__ = ["main", "start"]

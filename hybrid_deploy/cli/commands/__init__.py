"""The commands of `hybrid-deploy`, one file each.

The arguments of the command line enter, and a report leaves on stdout. A command calls functions
of the library that it imports when it runs, and computes nothing of its own. No module here may
import PyTorch, ONNX or a backend at its top.
"""

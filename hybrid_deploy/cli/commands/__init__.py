"""The commands of `hybrid-deploy`, one file each.

The arguments of the command line enter, and a report leaves on stdout. Functions of the library
do the work, and a command imports most of them when it runs. No module here may import PyTorch,
ONNX or a backend at its top.
"""

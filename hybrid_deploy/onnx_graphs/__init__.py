"""ONNX graphs as data: loaded, saved, counted and rewritten with onnx_ir.

A bundle's ONNX files enter and `ir.Model` objects leave; `files` writes them back. This is the only
room of the core that may import onnx_ir; it may not import PyTorch, and the runtime never imports
this room.
"""

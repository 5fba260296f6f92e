"""ONNX files of a bundle: read, written, priced, and given a step for beam searches.

The one shared room that may import onnx_ir; the runtime never does.
"""

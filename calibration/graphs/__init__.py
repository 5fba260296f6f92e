"""Edits of ONNX graphs that do not depend on a precision.

In: the float graphs of a bundle. Out: the same graphs in the form that the passes expect, and the
edits and analyses that several passes share. Imports no other room of calibration.
"""

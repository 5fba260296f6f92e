"""Captures the torch.export graph of a decoder at two lengths and finds its token axes.

A torch module `decode(tokens, *memory)` with example memory enters; a `Capture` leaves, or an
`UnsupportedModelError` that names the user's line. Imports torch and the core only: no other room
of the exporter and nothing of ONNX.
"""

"""Binding-time analysis: finds which nodes depend on the tokens, the memory, or neither.

A `Capture` enters; a `DecodePlan` leaves, or an `UnsupportedModelError` that names the user's line.
One file per family of operator rules. Imports plan and trace; never lowering, parity or ONNX.
"""

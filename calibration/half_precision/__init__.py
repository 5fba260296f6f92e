"""Graphs in float16 and bfloat16.

In: float32 graphs, and the names of tensors that overflow 16 bits. Out: the same graphs with 16-bit
numbers, or float32 graphs that round as bfloat16 hardware does. Of calibration, only the room
`graphs` is imported here.
"""

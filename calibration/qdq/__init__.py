"""Weights and activations of 8 and 4 bits, as QuantizeLinear and DequantizeLinear nodes.

In: float32 graphs, and the ranges and channel statistics of their activations. Out: the same graphs
with stored weights and quantized activations. Of calibration, only graphs, recipes and statistics
are imported here.
"""

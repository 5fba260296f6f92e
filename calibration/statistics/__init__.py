"""Keeps statistics of tensors, and chooses the ranges and scales that quantization uses.

In: the values of a tensor, array by array. Out: `Range` and `Scales`, with the file `scales.json`.
The room imports the core, no other room of `calibration`, no runtime and no `export`.
"""

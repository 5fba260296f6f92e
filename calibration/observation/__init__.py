"""Decodes samples with the float graphs and records statistics of every tensor to quantize.

In: the float graphs of a bundle, and samples. Out: `Observations`, which can be saved, resumed,
merged and turned into scales. The room imports the runtime's decoding loop, `samples`,
`statistics`, `qdq` (which tensors may be quantized) and the core, never `export`.
"""

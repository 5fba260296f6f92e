"""Turns a float bundle and samples into quantized variants.

In: a bundle and samples, or a file of scales. Out: a new variant in that bundle, compared with
float before it is added. The package imports the runtime and the core, never `export`.
"""

"""Builds quantized variants: opens a request, ranks layers, holds an accuracy budget, evaluates.

In: a bundle with a float variant, samples, and a recipe or a request to choose one. Out: a new
variant in the bundle and a report. The room imports all other rooms of `calibration` and the
runtime, never `export`.
"""

"""Lowers a decoder plan, or a model's own step, to ONNX graphs with the contract's names.

A `DecodePlan` with its model, or a model with `initial_state` and `step`, enters; the ONNX graphs
of encoder, prefill and step leave. Imports analysis, plan, trace and model; never the pipeline.
"""

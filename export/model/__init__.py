"""The user's torch module: its encode and decode, its weights, its inputs' varying axes.

A module, its example inputs and files of weights enter; checked modules, memory and logits leave.
Nothing here may import another room of the exporter but trace.
"""

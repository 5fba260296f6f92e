"""The torch.export graphs of a decoder: captured, made portable, paired at two lengths.

A module comes in; its graph, in which the token axis is known, leaves.
"""

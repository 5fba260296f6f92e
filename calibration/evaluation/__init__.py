"""Compares a variant with the float variant: tokens, error rates, divergence of the logits.

In: a bundle, two of its variants and an evaluation set. Out: an `Evaluation`. The room writes no
files and imports the runtime, `samples` and the core, never `export`.
"""

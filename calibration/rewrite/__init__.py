"""The rewrites of a recipe: from the float graphs of a variant to the graphs of another one.

In: float32 graphs, a recipe, the scales of calibration. Out: the same graphs rewritten in place,
and the graphs that a form adds. Imports the passes below it, never calibrate, variants or quantize.
"""

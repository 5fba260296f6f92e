"""What is asked of a model: encode and decode, its weights, its varying axes.

Everything here handles the user's own torch module and its inputs.
"""

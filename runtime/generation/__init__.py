"""From logits to tokens: greedy, beams, sampling, constraints, text as it comes.

Only the protocol of the backends comes in; no backend, no file.
"""

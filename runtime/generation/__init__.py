"""Chooses tokens from logits: greedy decoding, beam search, sampling, constraints, stop strings.

A started `Decoding` and the prompts enter; tokens, their scores and the reason why each sequence
ended leave. Of the backends only `backends.protocol` may be imported here.
"""

"""Graphs in float16 and bfloat16, and what overflows there."""

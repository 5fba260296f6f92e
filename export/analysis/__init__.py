"""Binding-time analysis: which nodes depend on the tokens, the memory, or neither.

The traced graph comes in; a plan leaves, or a refusal that names the user's line. One file per
family of operator rules.
"""

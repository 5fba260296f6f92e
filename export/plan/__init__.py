"""What the incremental decoder computes, keeps and gathers: the plan of a derivation.

Values of the traced graph come in; caches, their layout and row-wise execution leave.
"""

"""Lets a trace go on where PyTorch cannot solve a guard on a size.

Two ways to halve the frames of a sound twice, a convolution and a slice of its mask, agree at every
number of frames:

    (((frames - 1) // 2 - 1) // 2  ==  the number of columns in mask[:, :-2:2][:, :-2:2]

PyTorch asks sympy to solve this for `frames`, and fails where sympy has no method for it. The guard
is evaluated at every declared size later (`size_guards.DeclaredSizes`), so no solution is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx.experimental.symbolic_shapes import DimConstraints


@contextmanager
def keep_unsolved_guards() -> Iterator[None]:
    """While it is active, a guard that sympy cannot solve raises no exception in a trace."""
    solve = DimConstraints.solve

    def solve_if_possible(constraints: DimConstraints) -> None:
        try:
            solve(constraints)
        except NotImplementedError:
            return

    DimConstraints.solve = solve_if_possible  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DimConstraints.solve = solve  # type: ignore[method-assign]

"""What a model is traced with, so that nothing is left that has no portable form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hybrid_deploy.export.complex_numbers import ComplexAsPairs
from hybrid_deploy.export.pooling import PoolingInTwoDimensions


@contextmanager
def portable_forms() -> Iterator[None]:
    """Replaces what has no portable form by what computes the same."""
    with PoolingInTwoDimensions(), ComplexAsPairs():
        yield

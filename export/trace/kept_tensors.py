"""Clears caches of the user's functions that kept a tensor of a trace.

    @functools.lru_cache
    def causal_mask(length): ...        called in a trace, it keeps a tensor that has no values

Such a tensor would make the user's own model fail after the export.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from hybrid_deploy.export.trace.refusal import is_user_file

_CONTAINERS = (dict, list, tuple, set)
_CACHE = type(functools.lru_cache(len))


@contextmanager
def no_traced_tensors_kept() -> Iterator[None]:
    """Clears, when it ends, each `functools.lru_cache` of a user's function that kept a trace."""
    try:
        yield
    finally:
        for cache in (each for each in gc.get_objects() if type(each) is _CACHE):
            code = getattr(cache.__wrapped__, "__code__", None)
            if code is not None and is_user_file(code.co_filename) and _holds_trace(cache):
                cache.cache_clear()


def _holds_trace(cache: Any) -> bool:
    """Returns whether a cache holds a tensor of a trace, itself or in a nest of containers."""
    pending, seen = list(gc.get_referents(cache)), set[int]()
    while pending:
        value = pending.pop()
        if isinstance(value, (FakeTensor, FunctionalTensor)):
            return True
        if type(value) in _CONTAINERS and id(value) not in seen:
            seen.add(id(value))
            pending += gc.get_referents(value)
    return False

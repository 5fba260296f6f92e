"""Which backends this machine has the hardware for."""

from __future__ import annotations

from hybrid_deploy.runtime.backends.registry import BACKENDS, DEFAULT_BACKEND
from hybrid_deploy.runtime.host.local_gpu import local_gpu


def usable_backends() -> tuple[str, ...]:
    """Returns the names of the backends that this machine has the hardware for.

    The library of such a backend may still be missing.
    """
    return BACKENDS if local_gpu() is not None else (DEFAULT_BACKEND,)

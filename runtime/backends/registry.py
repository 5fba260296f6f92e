"""The names of the backends, and how one is loaded. No vendor library is imported here."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass

from hybrid_deploy.argument_checks import check_integer, check_text
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Backend

MAX_THREADS = max(64, 2 * (os.cpu_count() or 1))
"""Largest number of CPU threads of one operator; far more than CPUs take seconds to start."""


@dataclass(frozen=True)
class BackendOptions:
    """How a backend uses the machine.

    Attributes:
        threads: number of CPU threads of one operator; None leaves the choice to the backend.
        large_pages: whether a CPU backend moves its RAM onto large pages at the second batch.

    Raises:
        UsageError: `threads` is no whole number from 1 to MAX_THREADS.
    """

    threads: int | None = None
    large_pages: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_integer("threads", self.threads, 1, MAX_THREADS)


_MODULES = {
    "onnxruntime": "hybrid_deploy.runtime.backends.onnxruntime.backend",
    "onnxruntime-cuda": "hybrid_deploy.runtime.backends.onnxruntime.cuda_backend",
    "tensorrt": "hybrid_deploy.runtime.backends.tensorrt.backend",
}


BACKENDS = tuple(_MODULES)


DEFAULT_BACKEND = "onnxruntime"


def load_backend(name: str, bundle: Bundle, variant: str, options: BackendOptions) -> Backend:
    """Loads one variant of a bundle into a backend.

    Raises:
        UsageError: there is no backend of that name, or the variant returns no logits.
        MissingDependencyError: the library of the backend is not installed.
        BackendError: the backend cannot load the variant.
    """
    check_text("backend", name)
    if name not in _MODULES:
        raise UsageError(f"unknown backend {name!r}; choose one of: {', '.join(BACKENDS)}")
    head = bundle.variant(variant).head
    if head is not Head.LOGITS:
        raise UsageError(
            f"variant {variant} of {bundle.folder} returns {head.value} in place of the logits, "
            "for a loop of your own; export it with --head logits to run it here"
        )
    backend: Backend = importlib.import_module(_MODULES[name]).load(bundle, variant, options)
    return backend

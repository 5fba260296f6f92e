"""The names of the backends, and how one is loaded. No vendor library is imported here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Backend


@dataclass(frozen=True)
class BackendOptions:
    """How a backend uses the machine.

    Attributes:
        threads: number of CPU threads of one operator; None leaves the choice to the backend.
        large_pages: whether a CPU backend moves its RAM onto large pages at the second batch.
    """

    threads: int | None = None
    large_pages: bool = True


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

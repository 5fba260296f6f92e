"""Deploy trained PyTorch hybrid models: export, quantize, build, run, profile.

What is named below is loaded when it is first used, so that a device never needs what only a
workstation has.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_VERBS = {
    "GenerateOptions": "hybrid_deploy.runtime.generation.options",
    "build_engines": "hybrid_deploy.runtime.engines.build",
    "export_model": "hybrid_deploy.export.exporter",
    "load_session": "hybrid_deploy.runtime.session.session",
    "open_bundle": "hybrid_deploy.bundle.bundle",
    "profile_session": "hybrid_deploy.runtime.session.profile",
    "quantize_bundle": "hybrid_deploy.calibration.quantize",
}

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> object:
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_VERBS[name]), name)

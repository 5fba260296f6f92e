"""Deploy trained PyTorch hybrid models: export, quantize, build, run, profile.

Each public name is imported when it is first used: a device that calls `load_session` never imports
the export, so it needs neither PyTorch nor ONNX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hybrid_deploy import telemetry
from hybrid_deploy.version import __version__

if TYPE_CHECKING:
    from hybrid_deploy.bundle.bundle import open_bundle
    from hybrid_deploy.calibration.quantize import quantize_bundle
    from hybrid_deploy.export.exporter import export_model
    from hybrid_deploy.runtime.engines.build import build_engines
    from hybrid_deploy.runtime.generation.options import GenerateOptions
    from hybrid_deploy.runtime.session.profile import profile_session
    from hybrid_deploy.runtime.session.session import load_session

_HOMES = {  # public name -> module that defines it
    "GenerateOptions": "hybrid_deploy.runtime.generation.options",
    "build_engines": "hybrid_deploy.runtime.engines.build",
    "export_model": "hybrid_deploy.export.exporter",
    "load_session": "hybrid_deploy.runtime.session.session",
    "open_bundle": "hybrid_deploy.bundle.bundle",
    "profile_session": "hybrid_deploy.runtime.session.profile",
    "quantize_bundle": "hybrid_deploy.calibration.quantize",
}

__all__ = [
    "GenerateOptions",
    "__version__",
    "build_engines",
    "export_model",
    "load_session",
    "open_bundle",
    "profile_session",
    "quantize_bundle",
]

telemetry.turn_off()


def __getattr__(name: str) -> object:
    """Returns a public name from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""Exports torch models as bundles of ONNX graphs that decode one token at a time.

A torch module with encode and decode, an example of its inputs and a ModelSpec enter; a bundle
leaves. Nothing here may import calibration or the command line. The names below are loaded at
their first use, since importing torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid_deploy.export.analysis.rules.custom import row_rule
    from hybrid_deploy.export.export_job import ExportJob, GraphForm, ModelSpec
    from hybrid_deploy.export.exporter import export_model, run_export
    from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
    from hybrid_deploy.export.model.substitution import substitute

_PUBLIC = {
    "DynamicAxis": "hybrid_deploy.export.model.dynamic_axes",
    "ExportJob": "hybrid_deploy.export.export_job",
    "GraphForm": "hybrid_deploy.export.export_job",
    "ModelSpec": "hybrid_deploy.export.export_job",
    "export_model": "hybrid_deploy.export.exporter",
    "row_rule": "hybrid_deploy.export.analysis.rules.custom",
    "run_export": "hybrid_deploy.export.exporter",
    "substitute": "hybrid_deploy.export.model.substitution",
}

__all__ = [
    "DynamicAxis",
    "ExportJob",
    "GraphForm",
    "ModelSpec",
    "export_model",
    "row_rule",
    "run_export",
    "substitute",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)

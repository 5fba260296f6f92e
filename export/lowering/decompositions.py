"""Skips the decomposition pass of torch.onnx for programs that it can translate as they are.

Before torch.onnx translates a program, it traces the program again to decompose operators without a
translation. That takes as long as the rest of the export, and the derived graphs rarely contain
such an operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CHECKS = ("_assert", "sym_constrain_range")  # torch.onnx removes them itself


@contextmanager
def decompose_only_if_needed() -> Iterator[None]:
    """While active, torch.onnx.export decomposes only programs with an untranslated operator."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        original = _fx_passes.decompose_with_registry
    except (ImportError, AttributeError):  # this version of PyTorch has another exporter
        yield
        return

    def decompose(
        exported_program: torch.export.ExportedProgram, registry: Any
    ) -> torch.export.ExportedProgram:
        translated = set(_decomp.get_onnx_implemented_overloads(registry))
        if all(_is_translated(node, translated) for node in exported_program.graph.nodes):
            return exported_program
        return original(exported_program, registry)

    _fx_passes.decompose_with_registry = decompose
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = original


def _is_translated(node: torch.fx.Node, translated: set[Any]) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return True
    if any(check in str(target) for check in _CHECKS):
        return True
    return target in translated and not target._schema.is_mutable

"""Sparing torch.onnx a second trace of programs that it can translate as they are.

Before it translates a program, torch.onnx traces it again to split operators into ones that it
knows, which takes as long as everything else together. The derived graphs rarely hold any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CHECKS = ("_assert", "sym_constrain_range")  # removed by torch.onnx itself


@contextmanager
def only_needed_decompositions() -> Iterator[None]:
    """Lets torch.onnx.export split operators only in programs that hold an unknown one."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        original = _fx_passes.decompose_with_registry
    except (ImportError, AttributeError):  # another version of PyTorch: as it comes
        yield
        return

    def decompose(
        exported_program: torch.export.ExportedProgram, registry: Any
    ) -> torch.export.ExportedProgram:
        known = set(_decomp.get_onnx_implemented_overloads(registry))
        if all(_is_translated(node, known) for node in exported_program.graph.nodes):
            return exported_program
        return original(exported_program, registry)

    _fx_passes.decompose_with_registry = decompose
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = original


def _is_translated(node: torch.fx.Node, known: set[Any]) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return True
    if any(check in str(target) for check in _CHECKS):
        return True
    return target in known and not target._schema.is_mutable

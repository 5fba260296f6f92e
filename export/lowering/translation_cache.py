"""Reuses the translation table that torch.onnx otherwise builds again for each graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TABLES: dict[int, Any] = {}


@contextmanager
def reuse_translation_table() -> Iterator[None]:
    """While active, torch.onnx.export copies the translation table of an earlier call.

    To build the table of an opset, torch.onnx parses the sources of all its functions, which takes
    a second per graph. Each call gets its own copy, to which it adds its custom operators.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):  # this version of PyTorch has another registry
        yield
        return

    def copied(cls: type[Any], opset_version: int) -> Any:
        if opset_version not in _TABLES:
            _TABLES[opset_version] = original.__get__(None, cls)(opset_version=opset_version)
        table, copy = _TABLES[opset_version], cls()
        vars(copy).update(vars(table))
        copy.functions = {name: list(entries) for name, entries in table.functions.items()}
        return copy

    ONNXRegistry.from_torchlib = classmethod(copied)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]

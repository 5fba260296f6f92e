"""Sparing torch.onnx to make its table of translations anew for every graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TABLES: dict[int, Any] = {}


@contextmanager
def translations_made_once() -> Iterator[None]:
    """Lets torch.onnx.export copy the table that an earlier call for the same opset has made.

    To make it, the sources of all its functions are read for their signatures, a second for each
    graph. The calls add custom operators to the copy.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):  # another version of PyTorch: as it comes
        yield
        return

    def copied(cls: type[Any], opset_version: int) -> Any:
        if opset_version not in _TABLES:
            _TABLES[opset_version] = original.__get__(None, cls)(opset_version=opset_version)
        table, copy = _TABLES[opset_version], cls()
        vars(copy).update(vars(table))
        copy.functions = {name: list(known) for name, known in table.functions.items()}
        return copy

    ONNXRegistry.from_torchlib = classmethod(copied)  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]

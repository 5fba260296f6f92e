"""Turns a failure of torch.onnx into the error that names the user's line and the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import fx, nn

from hybrid_deploy.contract import BATCH_DIM
from hybrid_deploy.errors import ExportError, HybridDeployError, UnsupportedModelError
from hybrid_deploy.export.trace.refusal import (
    first_line,
    line_of_text,
    node_line,
    trace_failure,
    user_line,
)
from hybrid_deploy.export.trace.size_guards import GuardLog, fixed_size, fixing_line

_FIXED_SIZE = ("onstraints violated", "specialized", "inferred ranges", " not in VR[")
"""Words of PyTorch's errors where a trace makes a varying size constant, or narrows its range."""

_FIXED_DIMENSION = re.compile(r"inputs\['(\w+)'\](?:\[(\d+)\])?\.shape\[(\d+)\]")
_NO_TRANSLATION = re.compile(
    r"No ONNX function found for <OpOverload\(op='([^']+)', overload='(\w+)'"
)
_REMEDIES = {
    "Boolean index_put": "a boolean mask picks the places to write, as in x[:, mask] = value; use "
    "x.masked_fill(mask, value), whose mask is broadcast",
    "Tensor dtype mismatch! Expected: torch.bfloat16": "it computes in bfloat16, and an export "
    "computes in float32; leave out autocast",
    "Tensor dtype mismatch! Expected: torch.float16": "it computes in float16, and an export "
    "computes in float32; leave out autocast",
    "lazy_load_decompositions": "it calls torch.vmap, which a trace cannot follow; compute "
    "the whole of the batch at once",
    "torch._C.Generator": "it draws random numbers from a torch.Generator, which a graph cannot; "
    "draw them once in __init__ and keep them with register_buffer",
}
"""What a user can do about a failed translation, by words of its causes."""


def translation_failure(
    error: Exception,
    module: nn.Module,
    dynamic: Sequence[Mapping[int, str]],
    log: GuardLog,
    part: str,
) -> HybridDeployError:
    """Returns the error for a module that torch.onnx cannot trace or translate.

    Args:
        error: what torch.onnx raised.
        module: the module that was translated.
        dynamic: for each parameter of its `forward`, the names of its symbolic dimensions by axis.
        log: the guards of the trace.
        part: the user's method that the module calls, such as `encode()`.
    """
    causes = _causes(error)
    own = [cause for cause in causes if isinstance(cause, HybridDeployError)]
    if own:
        return own[-1]
    if any(words in str(cause) for cause in causes for words in _FIXED_SIZE):
        names = _fixed_names(causes, module, dynamic)
        return UnsupportedModelError(f"{fixing_line(log)}{fixed_size(part, names)}")
    cause, line = causes[-1], _line(causes)
    if (why := trace_failure(cause, part)) != first_line(cause):
        return UnsupportedModelError(f"{line}{part} cannot be traced: {why}")
    texts = "\n".join(map(str, causes))
    for words, remedy in _REMEDIES.items():
        if words in texts:
            return UnsupportedModelError(f"{line}{part} has no ONNX form: {remedy}")
    if operator := _NO_TRANSLATION.search(first_line(cause)):
        return ExportError(
            f"{line}{part} has no ONNX form: no translation for the operator "
            f"{'.'.join(operator.groups()).replace('::', '.')}; write it with other operators"
        )
    return ExportError(f"{line}{part} has no ONNX form: {first_line(cause)}")


def _line(causes: Sequence[BaseException]) -> str:
    """Returns the user's line nearest to the innermost cause, as `file:line: `, or no text."""
    for cause in reversed(causes):
        if line := user_line(cause) or _traced_line(cause) or line_of_text(str(cause)):
            return line
    return ""


def _traced_line(error: BaseException) -> str:
    """Returns the user's line of the node that was being translated when an exception rose."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        line = (node_line(node) if isinstance(node, fx.Node) else "") or line
        trace = trace.tb_next
    return line


def _fixed_names(
    causes: Sequence[BaseException], module: nn.Module, dynamic: Sequence[Mapping[int, str]]
) -> set[str]:
    """Returns the names of the dimensions that PyTorch says it has fixed.

    All names, if it says none in a form that is known.
    """
    code = type(module).forward.__code__
    parameters = list(code.co_varnames[1 : code.co_argcount])
    names = set()
    for parameter, index, axis in _FIXED_DIMENSION.findall("\n".join(map(str, causes))):
        known = parameter in parameters
        place = parameters.index(parameter) if known else len(parameters) + int(index or 0)
        if place < len(dynamic):
            names.add(dynamic[place].get(int(axis), ""))
    names.discard("")
    return names or {name for axes in dynamic for name in axes.values()} or {BATCH_DIM}


def _causes(error: BaseException) -> list[BaseException]:
    """Returns an exception and the exceptions that caused it, the innermost last."""
    causes = [error]
    while error.__cause__ is not None and error.__cause__ not in causes:
        error = error.__cause__
        causes.append(error)
    return causes

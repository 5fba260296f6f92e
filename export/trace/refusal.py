"""Builds the error for a decoder that has no incremental form; it names the user's line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import fx
from torch.fx.proxy import TracerBase

from hybrid_deploy.errors import UnsupportedModelError

NO_CAUSAL_MASK = (
    "self-attention without a causal mask: a token would see the tokens after it, so they cannot "
    "be decoded one by one; pass tgt_mask to nn.TransformerDecoder, or attn_mask or is_causal=True "
    "to the attention, as the model was trained"
)
WAYS_OUT = (
    "ways out: give the operator a rule (hybrid_deploy.export.row_rule), put another module in its "
    "place (hybrid_deploy.export.substitute), or give the model initial_state() and step() of its "
    "own"
)

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_LIBRARY_FOLDERS = tuple(
    str(folder)
    for folder in (
        Path(__file__).parents[1],
        Path(torch.__file__).parent,
        *(
            Path(torch.__file__).parents[1] / name
            for name in ("sympy", "numpy", "onnxscript", "onnx_ir")
        ),
    )
)
_STANDARD_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = ("/site-packages/", "/dist-packages/")
_OUTSIDE = ("fake tensor in the exported program constant", ".numpy() is not supported")
_METHODS = ("encode", "decode", "initial_state", "step")
_FILTER = "_filter_traceback_frames"


class RunsDifferError(UnsupportedModelError):
    """Two runs or traces of a model differ, for the reason in the message or by chance."""


def refuse(node: fx.Node, why: str, *, ways_out: bool = True) -> UnsupportedModelError:
    """Returns the error for a node that has no incremental form.

    Args:
        node: the node; its user's line, operator and module stand in the message.
        why: the reason, as a clause.
        ways_out: whether the message lists the remedies of `WAYS_OUT`.
    """
    modules = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    module = re.sub(r"^model\.?", "", modules[-1] if modules else "") or "decode"
    line = node_line(node) or "an unknown line: "
    remedies = f"; {WAYS_OUT}" if ways_out else ""
    return UnsupportedModelError(f"{line}{why} (operator {node.target}, module {module}){remedies}")


def node_line(node: fx.Node) -> str:
    """Returns the user's line of a node, as `file:line: `; no text if it is not known.

    A region such as `with torch.autocast` has none of its own: its first operator's line counts.
    """
    body = _region(node)
    texts = [node.meta.get("stack_trace"), *(inner.meta.get("stack_trace") for inner in body)]
    return next((line for text in texts if (line := line_of_text(text or ""))), "")


def line_of_text(text: str) -> str:
    """Returns the last user's line that a text with stack frames names, or no text."""
    frames = [(file, line) for file, line in _FRAME.findall(text) if is_user_file(file)]
    return f"{frames[-1][0]}:{frames[-1][1]}: " if frames else ""


def _region(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes of the graph that a node runs as a region; none of other nodes."""
    owner = node.graph.owning_module
    names = [n.target for n in node.all_input_nodes if n.op == "get_attr"]
    bodies = [getattr(owner, str(name), None) for name in names] if owner is not None else []
    return [
        inner for body in bodies if isinstance(body, fx.GraphModule) for inner in body.graph.nodes
    ]


def extra_keys(keys: int, rows: int) -> str:
    """Returns why a self-attention is refused whose keys are not one per row, as a clause."""
    return (
        f"self-attention with {keys} keys for {rows} rows: a cache holds a key per token, and none "
        "that belong to no token, such as learned memory keys, sinks, add_bias_kv or add_zero_attn"
    )


def user_line(error: BaseException) -> str:
    """Returns the user's line at which an exception was raised, as `file:line: `.

    The text is empty if no line of the traceback is the user's.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user_file(f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


def trace_failure(error: BaseException, part: str = "decode()") -> str:
    """Returns why a trace failed: the cause if it is known, else the exception's first line.

    Args:
        error: what PyTorch or the user's code raised.
        part: the method that was traced, `encode()` or `decode()`.
    """
    text = str(error)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        values = "its inputs" if part == "encode()" else "tokens or memory"
        return f"Python control flow depends on the values of {values}; use torch.where"
    if "cannot be used as inputs to control flow" in text:
        return "Python computes a size from a varying one in a way that no graph can; use //"
    if "SymInt" in text and "unhashable" in text:
        return (
            "a size that varies is looked up in a dict, a set or a cache of Python; compute what "
            "depends on it with tensors"
        )
    if any(words in text for words in _OUTSIDE):
        return "it takes a value out of the trace, by .data or .numpy(); compute with tensors alone"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its repr if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def is_user_file(file: str) -> bool:
    """Returns whether a source file belongs to neither Python, PyTorch nor the exporter.

    The reference model counts as a user's model.
    """
    is_library = file.startswith(_LIBRARY_FOLDERS) or "/hybrid_deploy/export/" in file
    if file.startswith(_STANDARD_LIBRARY):
        is_library = is_library or not any(folder in file for folder in _INSTALLED)
    is_reference = "/export/reference/" in file
    return not file.startswith("<") and (is_reference or not is_library)


@contextmanager
def record_user_lines() -> Iterator[None]:
    """Records in every traced node the stack of the user's lines, from the model's method inwards.

    PyTorch's own filter keeps only the frames of functions called `forward`: `decode` and the
    functions that it calls would be missing.
    """
    original = getattr(TracerBase, _FILTER, None)
    if original is None:  # this version of PyTorch has no such filter
        yield
        return

    def users_frames(tracer: TracerBase, summary: traceback.StackSummary) -> traceback.StackSummary:
        frames = [frame for frame in summary if is_user_file(frame.filename)]
        method = next((i for i, f in enumerate(frames) if f.name in _METHODS), None)
        if method is None:
            unchanged: traceback.StackSummary = original(tracer, summary)
            return unchanged
        return traceback.StackSummary.from_list(frames[method:])

    setattr(TracerBase, _FILTER, users_frames)
    try:
        yield
    finally:
        setattr(TracerBase, _FILTER, original)

"""Saying why a decoder has no incremental form, and where: the operator and the user's line."""

from __future__ import annotations

import re
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
    "be decoded one by one"
)
WAYS_OUT = (
    "ways out: give the operator a rule (hybrid_deploy.export.row_rule), put another module in its "
    "place (hybrid_deploy.export.substitute), or give the model initial_state() and step() of its "
    "own"
)

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_NOT_THE_USERS = tuple(
    str(Path(folder)) for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)
_FILTER = "_filter_traceback_frames"


def refuse(node: fx.Node, why: str, *, ways_out: bool = True) -> UnsupportedModelError:
    """Makes the error for a node that has no incremental form; names where it comes from."""
    modules = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    module = re.sub(r"^model\.?", "", modules[-1] if modules else "") or "decode"
    where = _FRAME.findall(node.meta.get("stack_trace") or "")
    line = f"{where[-1][0]}:{where[-1][1]}" if where else "an unknown line"
    hint = f"; {WAYS_OUT}" if ways_out else ""
    return UnsupportedModelError(f"{line}: {why} (operator {node.target}, module {module}){hint}")


def users_line(error: BaseException) -> str:
    """Returns the user's own line that an exception passed through last, as `file:line: `."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of what an exception says, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def is_users(file: str) -> bool:
    """Returns whether a source file is neither PyTorch's nor the exporter's."""
    inside = file.startswith(_NOT_THE_USERS) or "/hybrid_deploy/export/" in file
    reference = "/export/reference/" in file
    return not file.startswith("<") and (reference or not inside)


@contextmanager
def recording_the_users_lines() -> Iterator[None]:
    """Lets every traced node remember the lines of the user's code that it comes from.

    PyTorch alone keeps the frames of functions called `forward`, which leaves out `decode` and all
    that it calls.
    """
    original = getattr(TracerBase, _FILTER, None)
    if original is None:  # another version of PyTorch: its own choice of lines is shown
        yield
        return

    def users_frames(tracer: TracerBase, summary: traceback.StackSummary) -> traceback.StackSummary:
        frames = [frame for frame in summary if is_users(frame.filename)]
        inside = next((i for i, f in enumerate(frames) if f.name == "decode"), None)
        if inside is None:
            kept: traceback.StackSummary = original(tracer, summary)
            return kept
        return traceback.StackSummary.from_list(frames[inside:])

    setattr(TracerBase, _FILTER, users_frames)
    try:
        yield
    finally:
        setattr(TracerBase, _FILTER, original)

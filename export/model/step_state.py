"""The state of a model with its own step: its tensors, and the axis of each that is the batch.

initial_state(*memory) -> {"h": (layers, batch, 32), "c": (layers, batch, 32)}

state 0    "h"    axis 1 is the batch    in the graphs (batch, layers, 32)
state 1    "c"    axis 1 is the batch    in the graphs (batch, layers, 32)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from hybrid_deploy.errors import UnsupportedModelError

_PYTHON_NUMBERS = (bool, int, float)


@dataclass(frozen=True)
class StateLayout:
    """How a state nests its tensors, and where each has the batch.

    Attributes:
        structure: the nesting of the tensors.
        batch_axes: the axis of the batch of each tensor, in the order of the structure.
    """

    structure: pytree.TreeSpec
    batch_axes: tuple[int, ...]

    def tensors(self, state: Any) -> list[Tensor]:
        """Returns the tensors of a state, batch first; a dict is read by its keys.

        Raises:
            ValueError: the state has another structure.
        """
        leaves = self.structure.flatten_up_to(state)
        return [leaf.movedim(axis, 0) for leaf, axis in zip(leaves, self.batch_axes, strict=True)]

    def state(self, tensors: Sequence[Tensor]) -> Any:
        """Returns the state of the given tensors, which are batch first."""
        leaves = [t.movedim(0, axis) for t, axis in zip(tensors, self.batch_axes, strict=True)]
        return pytree.tree_unflatten(leaves, self.structure)


def layout_of(two: Any, three: Any) -> StateLayout:
    """Returns the layout of a state.

    Args:
        two: what `initial_state` returns for a batch of 2.
        three: what it returns for a batch of 3.

    Raises:
        UnsupportedModelError: the state holds something else than tensors, or a tensor has no axis
            of the batch size.
    """
    leaves, structure = pytree.tree_flatten(two)
    others = pytree.tree_leaves(three)
    for index, leaf in enumerate(leaves):
        _check_tensor("initial_state()", index, leaf)
    pairs = zip(leaves, others, strict=True)
    axes = [_batch_axis(index, leaf, other) for index, (leaf, other) in enumerate(pairs)]
    return StateLayout(structure, tuple(axes))


def check_same_form(layout: StateLayout, state: Any, following: Any) -> None:
    """Checks that a step returns a state of the form that it was given.

    Args:
        layout: layout of the given state.
        state: the state that a step reads.
        following: the state that it returns.

    Raises:
        UnsupportedModelError: structure, shapes or types differ, or a value is no tensor.
    """
    try:
        leaves = layout.structure.flatten_up_to(following)
    except ValueError:
        leaves = None
    for index, leaf in enumerate(leaves or ()):
        _check_tensor("step()", index, leaf)
    before = pytree.tree_leaves(state)
    if leaves is None or list(map(_form, before)) != list(map(_form, leaves)):
        raise UnsupportedModelError(
            f"step() turns a state of {_text(state)} into one of {_text(following)}; a state "
            "must keep its structure, shapes and types (a growing cache: give it max_length "
            "places, and keep the position in the state)"
        )


def _check_tensor(method: str, index: int, leaf: Any) -> None:
    if isinstance(leaf, Tensor):
        return
    if isinstance(leaf, _PYTHON_NUMBERS):
        kind = type(leaf).__name__
        remedy = f"make it a tensor (batch,), such as torch.full((len(memory),), {leaf!r})"
    else:
        kind = "None" if leaf is None else type(leaf).__name__
        remedy = "leave it out, or keep it in the model"
    raise UnsupportedModelError(
        f"state {index} is {kind} in what {method} returns, and a graph hands on tensors alone; "
        f"{remedy}"
    )


def _batch_axis(index: int, two: Tensor, three: Tensor) -> int:
    """Returns the first axis that has the batch size in both states."""
    for axis, sizes in enumerate(zip(two.shape, three.shape, strict=False)):
        if sizes == (2, 3):
            return axis
    raise UnsupportedModelError(
        f"initial_state() gave {_text(two)} as state {index} for a batch of 2, and {_text(three)} "
        "for a batch of 3; every tensor of a state must have one axis of the batch size, best the "
        "first, so that sequences stay apart"
    )


def _form(leaf: Tensor) -> tuple[Any, ...]:
    return leaf.dtype, leaf.shape


def _text(state: Any) -> str:
    """Returns a state as text, with dtype and shape of each tensor: `(float32 (2, 24), int)`."""
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')} {tuple(state.shape)}"
    if isinstance(state, Mapping):
        return f"{{{', '.join(f'{key}: {_text(value)}' for key, value in state.items())}}}"
    if isinstance(state, (list, tuple)):
        inner = ", ".join(map(_text, state))
        return f"[{inner}]" if isinstance(state, list) else f"({inner})"
    return type(state).__name__

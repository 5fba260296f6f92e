"""Runs a model once on its example, and checks what its methods return and leave unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.model.interface import has_custom_step, heads_of
from hybrid_deploy.export.trace.refusal import first_line, user_line

_MEMORY = "a tensor or a tuple of tensors, which decode(tokens, *memory) takes one by one"
_LOGITS = "logits (batch, length, vocabulary)"


@torch.inference_mode(False)  # its tensors do not tell that they were written to
@torch.no_grad()
def check_example_run(model: nn.Module, inputs: Mapping[str, Tensor], length: int) -> None:
    """Checks types and shapes of the memory, and of the logits unless the model has its own step.

    Args:
        model: module of the interface, in eval mode.
        inputs: example inputs of the encoder by name, a batch of two.
        length: number of tokens to decode.

    Raises:
        UnsupportedModelError: a method returns something else than the interface asks for.
    """
    untyped_model: Any = model
    read = {name: value.clone() for name, value in inputs.items()}
    named = {f"its input {name}": value for name, value in read.items()}
    with _unchanged("encode()", named, _buffers(model)):
        memory = _tensors(untyped_model.encode(*read.values()))
    _check_batch_first(memory, inputs)
    if any(2 in value.shape[1:] for value in memory):  # the first axis may be 2 by chance
        three = {name: torch.cat([value, value[:1]]) for name, value in inputs.items()}
        _check_batch_first(_tensors(untyped_model.encode(*three.values())), three)
    if not has_custom_step(model):
        tokens = torch.ones(len(memory[0]), length, dtype=torch.int64)
        memory = tuple(value.clone() for value in memory)
        named = {f"value {index} of its memory": value for index, value in enumerate(memory)}
        with _unchanged("decode()", {"its tokens": tokens} | named, _buffers(model)):
            _check_takes(untyped_model.decode, memory)
            outputs = _decoded(model, tokens, memory)
        _check_logits(outputs, tokens)
        # the traces have these two lengths: what a model caches by length holds values before them
        untyped_model.decode(tokens[:, :-1], *memory)


def _decoded(model: nn.Module, tokens: Tensor, memory: tuple[Tensor, ...]) -> Any:
    """Returns what decode() returns.

    Raises:
        UnsupportedModelError: it works for fewer tokens alone.
        Exception: whatever the user's code raises.
    """
    untyped_model: Any = model
    try:
        return untyped_model.decode(tokens, *memory)
    except Exception as error:
        most = _most_tokens(model, tokens, memory)
        if most is None:
            raise
        tables = (
            f"the table {name} has {most} rows"
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding)
            and module.num_embeddings == most
            and isinstance(error, IndexError)
        )
        raise UnsupportedModelError(
            f"{user_line(error)}decode() fails for {tokens.shape[1]} tokens, the max_length, and "
            f"works for {most} ({next(tables, first_line(error))}); give a max_length of at most "
            f"{most}"
        ) from error


def _most_tokens(model: nn.Module, tokens: Tensor, memory: tuple[Tensor, ...]) -> int | None:
    """Returns the largest number of tokens that decode() takes; None if it takes not even two."""
    low, high = 1, tokens.shape[1]
    while high - low > 1:
        middle = (low + high) // 2 if low > 1 else 2
        low, high = (middle, high) if _decodes(model, tokens[:, :middle], memory) else (low, middle)
    return low if low > 1 else None


def _decodes(model: nn.Module, tokens: Tensor, memory: tuple[Tensor, ...]) -> bool:
    untyped_model: Any = model
    try:
        untyped_model.decode(tokens, *memory)
    except Exception:  # whatever the user's code raises
        return False
    return True


@contextmanager
def _unchanged(
    method: str, arguments: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> Iterator[None]:
    """Refuses a method that writes into tensors that it should only read.

    An argument may not even be written with the values that it has: other values may change.

    Args:
        method: the method that runs within the context, for messages.
        arguments: the tensors that the method is called with, by their name in messages.
        buffers: the buffers of the model, by their name in messages.

    Raises:
        UnsupportedModelError: an argument is written to, or a buffer has another value afterwards.
    """
    before = {name: value.clone() for name, value in buffers.items()}
    versions = {name: value._version for name, value in arguments.items()}
    yield
    written = [name for name, value in arguments.items() if value._version != versions[name]]
    for name in [*written, *(name for name in buffers if _differ(before[name], buffers[name]))]:
        raise UnsupportedModelError(
            f"{method} changes {name} in place, and graphs change nothing that they read; "
            "compute a new tensor (x + 1 in place of x.add_(1)), and keep no state in buffers"
        )


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one.nan_to_num(), other.nan_to_num())


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {f"the buffer {name}": value for name, value in model.named_buffers()}


def _tensors(memory: Any) -> tuple[Tensor, ...]:
    """Returns the memory as a tuple of tensors."""
    values = tuple(memory) if isinstance(memory, (tuple, list)) else (memory,)
    if not values:
        raise UnsupportedModelError(f"encode() returns nothing; return {_MEMORY}")
    for index, value in enumerate(values):
        if not isinstance(value, Tensor):
            place = f" as value {index} of its memory" if len(values) > 1 else ""
            keys = f" with {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
            raise UnsupportedModelError(
                f"encode() returns {_kind(value)}{keys}{place}; return {_MEMORY}"
            )
        _check_float32("encode()", value)
        if not value.numel():
            raise UnsupportedModelError(
                f"encode() returns memory of shape {tuple(value.shape)}, which holds no value; "
                "give an example that leaves some memory"
            )
    return values


def _check_batch_first(memory: tuple[Tensor, ...], inputs: Mapping[str, Tensor]) -> None:
    batch = len(next(iter(inputs.values())))
    for value in memory:
        if value.dim() and value.shape[0] == batch:
            continue
        given = ", ".join(f"{name} {tuple(each.shape)}" for name, each in inputs.items())
        axis = next((axis for axis, size in enumerate(value.shape) if size == batch), None)
        remedy = (
            "give every input of the batch its own row"
            if axis is None
            else f"return it as .transpose(0, {axis}), and turn it back in decode()"
        )
        raise UnsupportedModelError(
            f"encode() returns memory of shape {tuple(value.shape)} for the inputs {given}: the "
            f"memory must be batch first; {remedy}"
        )


def _check_takes(decode: Callable[..., Any], memory: tuple[Tensor, ...]) -> None:
    """Refuses a decode() that cannot be called with the tokens and every value of the memory."""
    try:
        signature = inspect.signature(decode)
    except ValueError:  # a callable that tells nothing of its arguments
        return
    try:
        signature.bind(None, *memory)
    except TypeError:
        values = "one value" if len(memory) == 1 else f"{len(memory)} values"
        needed = ", ".join(["tokens", *(f"memory_{index}" for index in range(len(memory)))])
        raise UnsupportedModelError(
            f"encode() returns {values}, so decode() is called as decode({needed}), and it takes "
            f"{signature}; let it take each of them"
        ) from None


def _check_logits(outputs: Any, tokens: Tensor) -> None:
    heads = heads_of(outputs)
    for index, head in enumerate(heads):
        if not isinstance(head, Tensor):
            place = f" as output {index}" if len(heads) > 1 else ""
            raise UnsupportedModelError(
                f"decode() returns {_kind(head)}{place}; return {_LOGITS} and, after them, only "
                "tensors of other heads"
            )
    if not heads:
        raise UnsupportedModelError(f"decode() returns nothing; return {_LOGITS}")
    logits = heads[0]
    _check_float32("decode()", logits)
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        swapped = logits.dim() == 3 and logits.shape[:2] == tokens.shape[::-1]
        remedy = "; return them batch first, as .transpose(0, 1)" if swapped else ""
        raise UnsupportedModelError(
            f"decode() returns logits of shape {tuple(logits.shape)} for tokens "
            f"{tuple(tokens.shape)}, expected {_LOGITS}: a row for every token{remedy}"
        )


def _check_float32(method: str, value: Tensor) -> None:
    if value.is_complex():
        raise UnsupportedModelError(
            f"{method} returns complex numbers, which graphs cannot hold; return "
            "torch.view_as_real(x), and torch.view_as_complex makes it complex again"
        )
    if value.is_floating_point() and value.dtype != torch.float32:
        dtype = str(value.dtype).removeprefix("torch.")
        raise UnsupportedModelError(
            f"{method} returns {dtype}, and an export computes in float32; return .float(), and "
            "leave out autocast"
        )


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__

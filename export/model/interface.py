"""The interface of a model: `encode(*inputs) -> memory` and `decode(tokens, *memory) -> logits`.

In place of `decode` a model may bring its own step: `initial_state(*memory) -> state` and
`step(token, state, *memory) -> logits, state`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError

Inputs = Mapping[str, NDArray[Any]]
"""Encoder inputs by name, batch first."""

ADAPTER = """\
class Adapter(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def encode(self, image):
        return self.model.encoder(image)
    def decode(self, tokens, memory):
        return self.model.decoder(tokens, memory)
"""
"""Example of a class that adds `encode` and `decode` to a model, for messages."""


class EncodePart(nn.Module):
    """The encoder of a model as a separate module that returns a tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the memory: one or several tensors, batch first."""
        model: Any = self.model
        memory = model.encode(*inputs)
        return tuple(memory) if isinstance(memory, (tuple, list)) else (memory,)


class DecodePart(nn.Module):
    """The decoder of a model as a separate module; it runs a model's own step token by token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits (batch, length, vocabulary), then the outputs of other heads."""
        model: Any = self.model
        if callable(getattr(model, "decode", None)):
            return heads_of(model.decode(tokens, *memory))
        state, steps = model.initial_state(*memory), []
        for token in tokens.unbind(1):
            outputs, state = model.step(token, state, *memory)
            steps.append(heads_of(outputs))
        return tuple(torch.stack(rows, 1) for rows in zip(*steps, strict=True))


def heads_of(outputs: Any) -> tuple[Tensor, ...]:
    """Returns the outputs of a decoder, a tensor or several, as a tuple with the logits first.

    In a dict, a named tuple or a dataclass, the logits are what is called `logits`; in a tuple or a
    list they are the first value. Values that are None are left out.

    Raises:
        UnsupportedModelError: none of the several values of a dict or a dataclass is called
            `logits`, or the outputs are of another kind.
    """
    if isinstance(outputs, Tensor):
        return (outputs,)
    named = _named_outputs(outputs)
    if named is None:
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)
    if "logits" in named:
        named = {"logits": named.pop("logits"), **named}
    elif len(named) > 1 and not isinstance(outputs, tuple):
        raise UnsupportedModelError(
            f"the decoder returns {', '.join(map(repr, named))}, and none of them is called "
            "'logits'; give the logits that name"
        )
    return tuple(named.values())


def _named_outputs(outputs: Any) -> dict[Any, Any] | None:
    """Returns the values of a dict, a named tuple or a dataclass by name; None for others."""
    if isinstance(outputs, Mapping):
        named = dict(outputs)
    elif isinstance(outputs, tuple) and hasattr(outputs, "_asdict"):
        named = outputs._asdict()
    elif dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        named = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    else:
        return None
    return {name: value for name, value in named.items() if value is not None}


def has_custom_step(model: nn.Module) -> bool:
    """Returns whether a model has its own step, so that the exporter derives none."""
    return all(callable(getattr(model, name, None)) for name in ("initial_state", "step"))


def check_model(model: nn.Module) -> None:
    """Checks that a model has the methods of the interface and is in eval mode.

    Raises:
        UnsupportedModelError: a method is missing, a module is in training mode, scripted or
            quantized, or the weights are not float32 on the CPU.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UnsupportedModelError(
            f"the model must be an instance of torch.nn.Module, got {given}"
        )
    needed = ["encode"] if has_custom_step(model) else ["encode", "decode"]
    missing = [name for name in needed if not callable(getattr(model, name, None))]
    if missing:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no {'() and no '.join(missing)}(); wrap it in a module "
            "with encode(*inputs) -> memory and the full-sequence decode(tokens, *memory) -> "
            f"logits, in eval mode:\n\n{ADAPTER}"
        )
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise UnsupportedModelError(
            f"the model is in training mode ({training[0]}), so dropout would be exported; "
            "call model.eval() first"
        )
    _check_weights(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or ".quantized." in type(module).__module__:
            raise UnsupportedModelError(
                f"the module {name or type(model).__name__} is a {type(module).__name__} that "
                "PyTorch has scripted or quantized, which a trace cannot see into; give the float "
                "module that it was made from (hybrid-deploy quantize makes 8 bits of a bundle)"
            )


def _check_weights(model: nn.Module) -> None:
    """Refuses weights that are not float32, or not on the CPU."""
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu":
            raise UnsupportedModelError(
                f"the weight {name} is on {weight.device}, and an export runs on the CPU; call "
                "model.cpu() first"
            )
        if weight.is_floating_point() and weight.dtype != torch.float32:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise UnsupportedModelError(
                f"the weight {name} is {dtype}, and an export computes in float32; call "
                "model.float() first (a bundle gets 16 bits by hybrid-deploy quantize)"
            )


@torch.no_grad()
def reference_logits(model: nn.Module, memory: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    """Returns the model's own logits of every token, (batch, length, vocabulary)."""
    return reference_heads(model, memory, tokens)[0]


@torch.no_grad()
def reference_heads(
    model: nn.Module, memory: tuple[Tensor, ...], tokens: Tensor
) -> tuple[Tensor, ...]:
    """Returns the outputs of all heads, the logits first, each (batch, length, width)."""
    heads: tuple[Tensor, ...] = DecodePart(model)(tokens, *memory)
    return heads


@torch.no_grad()
def reference_memory(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns the memory of the model's own encoder as a tuple of tensors, batch first."""
    memory: tuple[Tensor, ...] = EncodePart(model)(*inputs)
    return memory


def arrays_of(inputs: Mapping[str, Tensor]) -> Inputs:
    """Returns the inputs as NumPy arrays, which share the buffers of the tensors."""
    return {name: value.numpy() for name, value in inputs.items()}


def as_batch_of_two(value: Tensor) -> Tensor:
    """Returns the first two rows of a batch, or its only row twice.

    A trace with a batch of one would fix the batch size.
    """
    return torch.cat([value, value])[:2].contiguous()

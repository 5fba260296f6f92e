"""What is asked of a model: `encode(inputs) -> memory` and `decode(tokens, memory) -> logits`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hybrid_deploy.errors import UnsupportedModelError

_NOISE = 1e-4  # of float32 sums in another order


class EncodePart(nn.Module):
    """The encoder of a model as a module of its own; gives a tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Gives the memory, each tensor batch first."""
        memory: Any = self.model.encode(*inputs)  # type: ignore[operator]
        return tuple(memory) if isinstance(memory, (tuple, list)) else (memory,)


class DecodePart(nn.Module):
    """The decoder of a model as a module of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, *memory: Tensor) -> tuple[Tensor]:
        """Gives the logits (batch, length, vocabulary)."""
        logits: Tensor = self.model.decode(tokens, *memory)  # type: ignore[operator]
        return (logits,)


def check_model(model: nn.Module) -> None:
    """Checks that a model can be asked for what the exporter needs.

    Raises:
        UnsupportedModelError: a method is missing, or the model is in training mode.
    """
    for method in ("encode", "decode"):
        if not callable(getattr(model, method, None)):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no {method}(); give it encode(inputs) -> memory and "
                "decode(tokens, memory) -> logits"
            )
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise UnsupportedModelError(
            f"the model is in training mode ({training[0]}), so dropout would be exported; "
            "call model.eval() first"
        )


def check_causal(model: nn.Module, memory: tuple[Tensor, ...], length: int) -> None:
    """Checks that no token changes the logits before it, on random tokens.

    Args:
        model: in eval mode.
        memory: what the encoder returned, any batch.
        length: how many tokens to decode.

    Raises:
        UnsupportedModelError: the decoder is not causal.
    """
    generator, batch = torch.Generator().manual_seed(0), memory[0].shape[0]
    start = torch.ones(batch, length, dtype=torch.int64)
    vocabulary = reference_logits(model, memory, start).shape[-1]
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    changed = tokens.clone()
    changed[:, length // 2 :] = (tokens[:, length // 2 :] + 1) % vocabulary
    first, second = (
        reference_logits(model, memory, t)[:, : length // 2] for t in (tokens, changed)
    )
    if not torch.allclose(first, second, atol=_NOISE, equal_nan=True):
        raise UnsupportedModelError(
            "decode() is not causal: tokens change the logits of the tokens before them, so they "
            "cannot be decoded one by one; give its self-attention a causal mask"
        )


@torch.no_grad()
def reference_logits(model: nn.Module, memory: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    """Gives the model's own logits of every position, (batch, length, vocabulary)."""
    logits: Tensor = model.decode(tokens, *memory)  # type: ignore[operator]
    return logits


@torch.no_grad()
def reference_memory(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gives what the model's own encoder returns, as a tuple."""
    memory: tuple[Tensor, ...] = EncodePart(model)(*inputs)
    return memory

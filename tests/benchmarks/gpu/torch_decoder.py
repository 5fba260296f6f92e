"""A decoder in PyTorch with static caches and fused attention, as an expert would write it.

It has the sizes of the model that it is compared with, and random weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.gpu.subjects import Sizes


class Layer(nn.Module):
    """One pre-norm decoder layer that processes one token of each sequence."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.heads * sizes.head_dim
        self.heads = sizes.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.project = nn.Linear(width, 3 * width)
        self.out, self.query, self.cross_out = (nn.Linear(width, width) for _ in range(3))
        self.up = nn.Linear(width, sizes.feedforward)
        self.down = nn.Linear(sizes.feedforward, width)

    def forward(
        self, x: Tensor, position: Tensor, mask: Tensor, caches: Tensor, memory: Tensor
    ) -> Tensor:
        """Returns the layer's output, (batch, width), and writes the token into the caches.

        Args:
            x: (batch, width) input.
            position: (1,) int64 position of the token in every sequence.
            mask: (1, 1, 1, capacity) bool, True at the visible positions.
            caches: (2, batch, heads, capacity, head_dim) keys and values, changed in place.
            memory: (2, batch, heads, positions, head_dim) cross-attention keys and values.
        """
        batch = len(x)
        query, key, value = (
            self.project(self.norms[0](x)).view(batch, 3, self.heads, 1, -1).unbind(1)
        )
        caches[0].index_copy_(2, position, key)
        caches[1].index_copy_(2, position, value)
        self_attention = F.scaled_dot_product_attention(query, caches[0], caches[1], attn_mask=mask)
        x = x + self.out(self_attention.reshape(batch, -1))
        query = self.query(self.norms[1](x)).view(batch, self.heads, 1, -1)
        cross_attention = F.scaled_dot_product_attention(query, memory[0], memory[1])
        x = x + self.cross_out(cross_attention.reshape(batch, -1))
        result: Tensor = x + self.down(F.gelu(self.up(self.norms[2](x))))
        return result


class TorchDecoder(nn.Module):
    """A decoder with its caches; all its sequences are at the same position."""

    caches: Tensor
    memory: Tensor
    keys: Tensor

    def __init__(self, sizes: Sizes, batch: int) -> None:
        super().__init__()
        width = sizes.heads * sizes.head_dim
        self.embedding = nn.Embedding(sizes.vocabulary, width)
        self.positions = nn.Embedding(sizes.capacity, width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sizes.vocabulary)
        shape = (sizes.layers, 2, batch, sizes.heads)
        self.register_buffer("caches", torch.zeros(*shape, sizes.capacity, sizes.head_dim))
        self.register_buffer("memory", torch.randn(*shape, sizes.memory, sizes.head_dim))
        self.register_buffer("keys", torch.arange(sizes.capacity))

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Returns the next tokens, (batch,) int64; token is (batch,) int64, position (1,) int64."""
        x = self.embedding(token) + self.positions(position)
        mask = (self.keys <= position)[None, None, None]
        for layer, caches, memory in zip(self.layers, self.caches, self.memory, strict=True):
            x = layer(x, position, mask, caches, memory)
        chosen: Tensor = self.head(self.norm(x)).argmax(-1)
        return chosen


def greedy_loop(
    step: Callable[[Tensor, Tensor], Tensor], batch: int, tokens: int, device: str
) -> Callable[[], None]:
    """Returns a loop that feeds tokens back on the device and copies them to the host at last."""
    positions = torch.arange(tokens, device=device)

    def generate() -> None:
        token, generated = torch.zeros(batch, dtype=torch.int64, device=device), []
        with torch.inference_mode():
            for index in range(tokens):
                token = step(token, positions[index : index + 1]).clone()
                generated.append(token)
        torch.stack(generated).cpu()

    return generate

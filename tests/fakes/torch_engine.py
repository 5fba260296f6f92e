"""Engines of PyTorch over the addresses of a device, so that a GPU can try the loop by itself.

The decoder is that of `fake_engine`. Nothing is allocated in a step: it can be recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybrid_deploy.contract import (
    LAST,
    LOGITS,
    NEXT_POSITION,
    NEXT_TOKEN,
    POSITION,
    SCORE,
    TOKEN,
    TOKENS,
    next_cache,
)
from hybrid_deploy.runtime.backends.gpu.backend import DeviceBackend
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo
from hybrid_deploy.runtime.backends.gpu.engine_set import load_engine_set
from tests.fakes.device import FakeDevice
from tests.fakes.engine import (
    ENCODER_SPEC,
    HEAD,
    KEY,
    MEMORY,
    VALUE,
    VOCABULARY,
    WIDTH,
    Decoder,
    fake_engines,
)
from tests.fakes.host_device import at

_DTYPES = {"float32": torch.float32, "int64": torch.int64}


class _Memory:
    """Memory of a GPU as other libraries take it."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str) -> None:
        kind = {"float32": "<f4", "int64": "<i8"}[dtype]
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": shape, "typestr": kind, "version": 3,
        }  # fmt: skip


def tensor_at(where: str, address: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Returns a tensor over memory that something else owns."""
    if where == "cuda":
        return torch.as_tensor(_Memory(address, shape, dtype), device="cuda")
    size = torch.Size(shape).numel() * _DTYPES[dtype].itemsize
    return torch.from_numpy(at(address, size)).view(_DTYPES[dtype]).reshape(shape)


class TorchEngine:
    """One graph of a decoder."""

    def __init__(self, graph: str, decoder: Decoder, device: Device, where: str) -> None:
        described = fake_engines(FakeDevice(), decoder)[graph]
        self.inputs, self.outputs = described.inputs, described.outputs
        self.aliases = described.aliases
        self.graph, self.capacity, self.where, self.device = graph, decoder.capacity, where, device
        names = ("token", "position", "query", "key", "value", "head")
        self.weights = {
            name: torch.from_numpy(getattr(decoder, f"_{name}")).to(where) for name in names
        }

    def context(self) -> TorchContext:
        return TorchContext(self)


class TorchContext:
    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bound: dict[str, int] = {}
        self._scratch: dict[str, Tensor] = {}
        self._stream = (
            torch.cuda.ExternalStream(engine.device.stream)  # type: ignore[no-untyped-call]
            if engine.where == "cuda"
            else None
        )

    @property
    def nbytes(self) -> int:
        return 0

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes |= shapes
        self._scratch.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        batch = next(iter(self._shapes.values()))[0]
        sizes = {0: batch, 1: self._shapes.get("image", (0, 0))[1]}
        info: TensorInfo = {**self._engine.inputs, **self._engine.outputs}[name]
        return tuple(sizes[i] if size == -1 else size for i, size in enumerate(info.shape))

    def bind(self, name: str, buffer: Buffer) -> None:
        self._bound[name] = buffer.address

    def capture_obstacle(self) -> str | None:
        return None

    def close(self) -> None:
        self._scratch.clear()

    def enqueue(self) -> None:
        with self._on_stream(), torch.inference_mode():
            getattr(self, f"_{self._engine.graph}")()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def _tensor(self, name: str) -> Tensor:
        info = {**self._engine.inputs, **self._engine.outputs}[name]
        return tensor_at(self._engine.where, self._bound[name], self.shape(name), info.dtype)

    def _temporary(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if name not in self._scratch:
            self._scratch[name] = torch.empty(shape, dtype=dtype, device=self._engine.where)
        return self._scratch[name]

    def _encoder(self) -> None:
        image = self._tensor("image")
        waves = torch.arange(1, WIDTH + 1, device=image.device, dtype=torch.float32)
        torch.sin(image[:, :, None] * waves, out=self._tensor(MEMORY))

    def _step(self) -> None:
        self._one(self._tensor(TOKEN), self._tensor(POSITION), self._caches())
        self._choose(self._temporary("hidden", 0), self._tensor(POSITION))

    def _prefill(self) -> None:
        tokens, position, last = (self._tensor(n) for n in (TOKENS, POSITION, LAST))
        caches, chosen = self._caches(), torch.zeros(len(tokens), WIDTH, device=tokens.device)
        for index in range(tokens.shape[1]):
            at_most = (position + index).clamp(max=self._engine.capacity - 1)
            self._one(tokens[:, index].contiguous(), at_most, caches)
            chosen[last == index] = self._temporary("hidden", 0)[last == index]
        self._choose(chosen, position + last)

    def _caches(self) -> tuple[Tensor, Tensor]:
        """Returns the caches to write into; where they are not in place, copies the old ones."""
        written = self._tensor(next_cache(KEY)), self._tensor(next_cache(VALUE))
        if not self._engine.aliases:
            for target, name in zip(written, (KEY, VALUE), strict=True):
                target.copy_(self._tensor(name))
        return written

    def _one(self, token: Tensor, position: Tensor, caches: tuple[Tensor, Tensor]) -> None:
        """Decodes a token per row into the temporary `hidden` (batch, WIDTH)."""
        weights, batch, capacity = self._engine.weights, len(token), self._engine.capacity
        hidden, place, row = (self._temporary(n, batch, WIDTH) for n in ("hidden", "place", "row"))
        torch.index_select(weights["token"], 0, token, out=hidden)
        torch.index_select(weights["position"], 0, position, out=place)
        hidden.add_(place)
        index = position.view(batch, 1, 1).expand(batch, 1, WIDTH)
        for cache, name in zip(caches, ("key", "value"), strict=True):
            torch.mm(hidden, weights[name], out=row)
            cache.scatter_(1, index, row[:, None])
        torch.mm(hidden, weights["query"], out=row)
        keys = self._temporary("keys", capacity, dtype=torch.int64)
        torch.arange(capacity, out=keys)
        unseen = self._temporary("unseen", batch, capacity, dtype=torch.bool)
        torch.gt(keys[None], position[:, None], out=unseen)
        self._attend("own", row, caches[0], caches[1], unseen)
        place.copy_(hidden)
        hidden.add_(self._temporary("own seen", 0)[:, 0])
        memory = self._tensor(MEMORY)
        self._attend("cross", hidden, memory, memory, None)
        hidden.add_(self._temporary("cross seen", 0)[:, 0])

    def _attend(
        self, name: str, query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None
    ) -> None:
        scores = self._temporary(f"{name} scores", len(query), 1, keys.shape[1])
        weights = self._temporary(f"{name} weights", len(query), 1, keys.shape[1])
        seen = self._temporary(f"{name} seen", len(query), 1, WIDTH)
        torch.bmm(query[:, None], keys.mT, out=scores)
        if unseen is not None:
            scores.masked_fill_(unseen[:, None], float("-inf"))
        torch.softmax(scores, -1, out=weights)
        torch.bmm(weights, values, out=seen)

    def _choose(self, hidden: Tensor, position: Tensor) -> None:
        batch, logits = len(hidden), self._tensor(LOGITS)
        torch.mm(hidden, self._engine.weights["head"], out=logits)
        logits.mul_(3)
        token, following = self._tensor(NEXT_TOKEN), self._tensor(NEXT_POSITION)
        torch.argmax(logits, -1, out=token)
        torch.add(position, 1, out=following)
        following.clamp_(max=self._engine.capacity - 1)
        scores = self._temporary("log", batch, VOCABULARY)
        torch.log_softmax(logits, -1, out=scores)
        torch.gather(scores, 1, token[:, None], out=self._tensor(SCORE)[:, None])
        self._tensor(HEAD).copy_(hidden[:, :2])


def torch_backend(device: Device, decoder: Decoder, where: str, steps: int = 4) -> DeviceBackend:
    """Makes a backend whose engines are PyTorch's operators on `cpu` or `cuda`."""
    engines: dict[str, Any] = {
        name: TorchEngine(name, decoder, device, where) for name in ("encoder", "step", "prefill")
    }
    graphs = load_engine_set(
        engines["encoder"], engines["step"], engines["prefill"], decoder.capacity
    )
    return DeviceBackend("torch", "torch", device, graphs, ENCODER_SPEC, steps)

"""Engines computed by PyTorch on the addresses of a device: they test the loop without TensorRT.

The decoder is that of `tests.fakes.engine`. A step allocates nothing, so that a CUDA graph can
record it.
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
from tests.fakes.host_device import bytes_at

_DTYPES = {"float32": torch.float32, "int64": torch.int64}


class _CudaArray:
    """A tensor on a GPU with the CUDA array interface, from which PyTorch makes a view."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str) -> None:
        typestr = {"float32": "<f4", "int64": "<i8"}[dtype]
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": shape, "typestr": typestr, "version": 3,
        }  # fmt: skip


def tensor_at(device_type: str, address: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Returns a tensor over the bytes at an address, which it does not own."""
    if device_type == "cuda":
        return torch.as_tensor(_CudaArray(address, shape, dtype), device="cuda")
    size = torch.Size(shape).numel() * _DTYPES[dtype].itemsize
    return torch.from_numpy(bytes_at(address, size)).view(_DTYPES[dtype]).reshape(shape)


class TorchEngine:
    """One graph of a decoder."""

    def __init__(self, graph: str, decoder: Decoder, device: Device, device_type: str) -> None:
        fake = fake_engines(FakeDevice(), decoder)[graph]
        self.inputs, self.outputs, self.aliases = fake.inputs, fake.outputs, fake.aliases
        self.graph, self.capacity = graph, decoder.capacity
        self.device_type, self.device = device_type, device
        self.weights = {
            name: torch.from_numpy(array).to(device_type) for name, array in decoder.weights.items()
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
            if engine.device_type == "cuda"
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
            runs = {"encoder": self._encoder, "step": self._step, "prefill": self._prefill}
            runs[self._engine.graph]()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.stream(self._stream):
                yield

    def _tensor(self, name: str) -> Tensor:
        info = {**self._engine.inputs, **self._engine.outputs}[name]
        return tensor_at(self._engine.device_type, self._bound[name], self.shape(name), info.dtype)

    def _temporary(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if name not in self._scratch:
            self._scratch[name] = torch.empty(shape, dtype=dtype, device=self._engine.device_type)
        return self._scratch[name]

    def _encoder(self) -> None:
        image = self._tensor("image")
        waves = torch.arange(1, WIDTH + 1, device=image.device, dtype=torch.float32)
        torch.sin(image[:, :, None] * waves, out=self._tensor(MEMORY))

    def _step(self) -> None:
        self._decode_token(self._tensor(TOKEN), self._tensor(POSITION), self._caches())
        self._choose(self._temporary("hidden", 0), self._tensor(POSITION))

    def _prefill(self) -> None:
        tokens, position, last = (self._tensor(n) for n in (TOKENS, POSITION, LAST))
        caches, chosen = self._caches(), torch.zeros(len(tokens), WIDTH, device=tokens.device)
        for index in range(tokens.shape[1]):
            at = (position + index).clamp(max=self._engine.capacity - 1)
            self._decode_token(tokens[:, index].contiguous(), at, caches)
            chosen[last == index] = self._temporary("hidden", 0)[last == index]
        self._choose(chosen, position + last)

    def _caches(self) -> tuple[Tensor, Tensor]:
        """Returns the caches to write; copies the old ones to them if they are not in place."""
        written = self._tensor(next_cache(KEY)), self._tensor(next_cache(VALUE))
        if not self._engine.aliases:
            for target, name in zip(written, (KEY, VALUE), strict=True):
                target.copy_(self._tensor(name))
        return written

    def _decode_token(self, token: Tensor, position: Tensor, caches: tuple[Tensor, Tensor]) -> None:
        """Decodes a token per row into the temporary `hidden` (batch, WIDTH)."""
        weights, batch, capacity = self._engine.weights, len(token), self._engine.capacity
        hidden, embedding, row = (
            self._temporary(name, batch, WIDTH) for name in ("hidden", "embedding", "row")
        )
        torch.index_select(weights["token"], 0, token, out=hidden)
        torch.index_select(weights["position"], 0, position, out=embedding)
        hidden.add_(embedding)
        index = position.view(batch, 1, 1).expand(batch, 1, WIDTH)
        for cache, name in zip(caches, ("key", "value"), strict=True):
            torch.mm(hidden, weights[name], out=row)
            cache.scatter_(1, index, row[:, None])
        torch.mm(hidden, weights["query"], out=row)
        positions = self._temporary("positions", capacity, dtype=torch.int64)
        torch.arange(capacity, out=positions)
        masked = self._temporary("masked", batch, capacity, dtype=torch.bool)
        torch.gt(positions[None], position[:, None], out=masked)
        self._attend("self", row, caches[0], caches[1], masked)
        hidden.add_(self._temporary("self attended", 0)[:, 0])
        memory = self._tensor(MEMORY)
        self._attend("cross", hidden, memory, memory, None)
        hidden.add_(self._temporary("cross attended", 0)[:, 0])

    def _attend(
        self, name: str, query: Tensor, keys: Tensor, values: Tensor, masked: Tensor | None
    ) -> None:
        scores = self._temporary(f"{name} scores", len(query), 1, keys.shape[1])
        weights = self._temporary(f"{name} weights", len(query), 1, keys.shape[1])
        attended = self._temporary(f"{name} attended", len(query), 1, WIDTH)
        torch.bmm(query[:, None], keys.mT, out=scores)
        if masked is not None:
            scores.masked_fill_(masked[:, None], float("-inf"))
        torch.softmax(scores, -1, out=weights)
        torch.bmm(weights, values, out=attended)

    def _choose(self, hidden: Tensor, position: Tensor) -> None:
        batch, logits = len(hidden), self._tensor(LOGITS)
        torch.mm(hidden, self._engine.weights["head"], out=logits)
        logits.mul_(3)
        token, next_position = self._tensor(NEXT_TOKEN), self._tensor(NEXT_POSITION)
        torch.argmax(logits, -1, out=token)
        torch.add(position, 1, out=next_position)
        next_position.clamp_(max=self._engine.capacity - 1)
        scores = self._temporary("log probabilities", batch, VOCABULARY)
        torch.log_softmax(logits, -1, out=scores)
        torch.gather(scores, 1, token[:, None], out=self._tensor(SCORE)[:, None])
        self._tensor(HEAD).copy_(hidden[:, :2])


def torch_backend(
    device: Device, decoder: Decoder, device_type: str, steps: int = 4
) -> DeviceBackend:
    """Returns a backend whose engines PyTorch computes on `device_type`, "cpu" or "cuda"."""
    engines: dict[str, Any] = {
        name: TorchEngine(name, decoder, device, device_type)
        for name in ("encoder", "step", "prefill")
    }
    engine_set = load_engine_set(
        engines["encoder"], engines["step"], engines["prefill"], decoder.capacity
    )
    return DeviceBackend("torch", "torch", device, engine_set, ENCODER_SPEC, steps)

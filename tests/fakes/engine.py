"""Engines for the fake device: a small decoder computed by numpy, from memory and caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
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
    recurrent_name,
)
from hybrid_deploy.errors import BackendError, InputError
from hybrid_deploy.runtime.backends.gpu.backend import DeviceBackend
from hybrid_deploy.runtime.backends.gpu.device import ALIGNMENT, Buffer
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo
from hybrid_deploy.runtime.backends.gpu.engine_set import load_engine_set
from tests.fakes.device import FakeDevice, Work

Form = Literal["in place", "in turn", "recurrent"]
FORMS: tuple[Form, ...] = ("in place", "in turn", "recurrent")
Arrays = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

WIDTH, VOCABULARY, LONGEST = 8, 23, 4096
KEY, VALUE, STATE, MEMORY, HEAD = "self_key_0", "self_value_0", recurrent_name(0), "m", "head_1"


@dataclass(frozen=True)
class Decoder:
    """The numbers of a decoder, with what it computes.

    Attributes:
        capacity: positions of its caches.
        form: how its caches are returned.
    """

    capacity: int = 20
    form: Form = "in place"
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes = {
            "token": (VOCABULARY, WIDTH), "position": (LONGEST, WIDTH), "query": (WIDTH, WIDTH),
            "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH), "head": (WIDTH, VOCABULARY),
        }  # fmt: skip
        for name, shape in shapes.items():
            object.__setattr__(self, f"_{name}", rng.normal(size=shape).astype(np.float32))

    def encode(self, arrays: Arrays) -> Arrays:
        """image (batch, memory) -> m (batch, memory, WIDTH)."""
        waves = np.sin(arrays["image"][:, :, None] * np.arange(1, WIDTH + 1, dtype=np.float32))
        return {MEMORY: waves.astype(np.float32)}

    def one(self, token: Any, position: Any, caches: Arrays, memory: Any) -> tuple[Arrays, Any]:
        """Decodes a token per row; gives new caches and the hidden rows (batch, WIDTH)."""
        rows, batch = np.arange(len(token)), len(token)
        hidden = self._token[token] + self._position[position]  # type: ignore[attr-defined]
        if self.form == "recurrent":
            state = np.tanh(caches[STATE] @ self._value + hidden)  # type: ignore[attr-defined]
            new: Arrays = {STATE: state.astype(np.float32)}
            hidden = state
        else:
            key, value = caches[KEY].copy(), caches[VALUE].copy()
            key[rows, position] = hidden @ self._key  # type: ignore[attr-defined]
            value[rows, position] = hidden @ self._value  # type: ignore[attr-defined]
            new = {KEY: key, VALUE: value}
            seen = np.arange(self.capacity) <= position[:, None]
            query = hidden @ self._query  # type: ignore[attr-defined]
            scores = np.einsum("bw,bcw->bc", query, key)
            hidden = hidden + _attend(np.where(seen, scores, -np.inf), value)
        attention = np.einsum("bw,bmw->bm", hidden, memory)
        assert len(hidden) == batch
        return new, (hidden + _attend(attention, memory)).astype(np.float32)

    def step(self, arrays: Arrays) -> Arrays:
        """token, position, caches, m -> what a step engine returns."""
        token, position = arrays[TOKEN], arrays[POSITION]
        assert ((token >= 0) & (token < VOCABULARY)).all(), token
        assert ((position >= 0) & (position < self.capacity)).all(), position
        new, hidden = self.one(token, position, arrays, arrays[MEMORY])
        return self._returned(new, hidden, position)

    def prefill(self, arrays: Arrays) -> Arrays:
        """tokens, position, last, caches, m -> what a prefill engine returns."""
        tokens, position, last = arrays[TOKENS], arrays[POSITION], arrays[LAST]
        caches, hiddens = {KEY: arrays[KEY], VALUE: arrays[VALUE]}, []
        for index in range(tokens.shape[1]):
            at = np.minimum(position + index, self.capacity - 1)
            caches, hidden = self.one(tokens[:, index], at, caches, arrays[MEMORY])
            hiddens.append(hidden)
        chosen = np.stack(hiddens, 1)[np.arange(len(tokens)), last]
        return self._returned(caches, chosen, position + last)

    def _returned(self, caches: Arrays, hidden: Any, position: Any) -> Arrays:
        logits = (hidden @ self._head * 3).astype(np.float32)  # type: ignore[attr-defined]
        best = logits.max(-1, keepdims=True)
        return {
            LOGITS: logits,
            HEAD: hidden[:, :2].copy(),
            NEXT_TOKEN: logits.argmax(-1),
            NEXT_POSITION: np.minimum(position + 1, self.capacity - 1),
            SCORE: -np.log(np.exp(logits - best).sum(-1)),
            **{next_cache(name): value for name, value in caches.items()},
        }

    @property
    def cache_shapes(self) -> Shapes:
        if self.form == "recurrent":
            return {STATE: (-1, WIDTH)}
        return {KEY: (-1, self.capacity, WIDTH), VALUE: (-1, self.capacity, WIDTH)}


def _attend(scores: Any, values: Any) -> Any:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bc,bcw->bw", weights / weights.sum(-1, keepdims=True), values)


@dataclass(eq=False)
class FakeEngine:
    """One graph of a decoder.

    Attributes:
        refuses_at: how many runs may be asked for before one is refused.
        fails_at: how many runs the device does before one fails there.
        longest: most tokens of a prompt.
    """

    device: FakeDevice
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    compute: Callable[[Arrays], Arrays]
    refuses_at: int | None = None
    fails_at: int | None = None
    longest: int | None = None
    contexts: list[FakeContext] = field(default_factory=list)

    def context(self) -> FakeContext:
        assert not self.device.sealed, "a context was made after everything was ready"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


@dataclass(eq=False)
class FakeContext:
    engine: FakeEngine
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    bound: dict[str, Buffer] = field(default_factory=dict)
    warm: bool = False

    @property
    def nbytes(self) -> int:
        return 1 << 20

    def set_shapes(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            info = self.engine.inputs[name]
            assert len(shape) == len(info.shape), (name, shape, info)
            assert all(w in (-1, s) for s, w in zip(shape, info.shape, strict=True)), (name, shape)
            if (
                self.engine.longest is not None
                and name == TOKENS
                and shape[1] > self.engine.longest
            ):
                raise InputError(f"the engine takes {self.engine.longest} tokens")
        if any(self.shapes.get(name) != shape for name, shape in shapes.items()):
            self.warm = False
        self.shapes |= shapes

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        batch, given = next(iter(self.shapes.values()))[0], self.shapes.get("image", (0, 0))
        sizes = {0: batch, 1: given[1]}
        info = {**self.engine.inputs, **self.engine.outputs}[name]
        return tuple(sizes[i] if size == -1 else size for i, size in enumerate(info.shape))

    def bind(self, name: str, buffer: Buffer) -> None:
        assert buffer.address % ALIGNMENT == 0, f"{name} is not aligned"
        self.bound[name] = buffer

    def capture_obstacle(self) -> str | None:
        return None

    def enqueue(self) -> None:
        engine, device = self.engine, self.engine.device
        assert not device.recording or self.warm, "a first run was recorded"
        self._check_aliases()
        engine_run = self._run(dict(self.bound), {n: self.shape(n) for n in self._tensors()})
        if engine.refuses_at is not None:
            engine.refuses_at -= 1
            if engine.refuses_at < 0:
                engine.refuses_at = None
                raise BackendError("refused")
        device.enqueues += not device.recording
        device.ask(Work(engine_run))
        self.warm = True

    def close(self) -> None:
        assert not self.engine.device.queue, "a context was freed while work was under way"
        self.engine.contexts.remove(self)

    def _tensors(self) -> Mapping[str, TensorInfo]:
        return {**self.engine.inputs, **self.engine.outputs}

    def _check_aliases(self) -> None:
        addresses: dict[int, str] = {}
        for name in self.engine.outputs:
            address = self.bound[name].address
            source = self.engine.aliases.get(name)
            assert address not in addresses, f"{name} and {addresses[address]} share an address"
            addresses[address] = name
            for other in self.engine.inputs:
                shared = self.bound[other].address == address
                assert shared == (other == source), f"{name} and {other} at {address}"

    def _run(self, bound: dict[str, Buffer], shapes: Shapes) -> Callable[[], None]:
        engine = self.engine

        def read(name: str) -> NDArray[Any]:
            dtype, shape = np.dtype(engine.inputs[name].dtype), shapes[name]
            size = int(np.prod(shape)) * dtype.itemsize
            data: NDArray[Any] = engine.device.at(bound[name].address, size)
            array: NDArray[Any] = data.copy().view(dtype).reshape(shape)
            return array

        def run() -> None:
            if engine.fails_at is not None:
                engine.fails_at -= 1
                if engine.fails_at < 0:
                    engine.fails_at = None
                    raise BackendError("an illegal address was read")
            with np.errstate(invalid="ignore"):
                results = engine.compute({name: read(name) for name in engine.inputs})
            for name, info in engine.outputs.items():
                data = np.ascontiguousarray(results[name].astype(info.dtype))
                assert data.shape == shapes[name], (name, data.shape, shapes[name])
                engine.device.at(bound[name].address, data.nbytes)[:] = np.frombuffer(
                    data.tobytes(), np.uint8
                )

        return run


def fake_engines(device: FakeDevice, decoder: Decoder) -> dict[str, FakeEngine]:
    """Makes encoder, step and, unless it is recurrent, prefill."""
    caches = {name: TensorInfo("float32", shape) for name, shape in decoder.cache_shapes.items()}
    memory = {MEMORY: TensorInfo("float32", (-1, -1, WIDTH))}
    ints, floats = TensorInfo("int64", (-1,)), TensorInfo("float32", (-1,))
    outputs = {
        LOGITS: TensorInfo("float32", (-1, VOCABULARY)),
        HEAD: TensorInfo("float32", (-1, 2)),
        NEXT_TOKEN: ints,
        NEXT_POSITION: ints,
        SCORE: floats,
        **{next_cache(name): info for name, info in caches.items()},
    }
    in_place = decoder.form == "in place"
    aliases = {next_cache(name): name for name in caches} if in_place else {}
    step = {TOKEN: ints, POSITION: ints, **memory, **caches}
    engines = {
        "encoder": FakeEngine(
            device, {"image": TensorInfo("float32", (-1, -1))}, memory, {}, decoder.encode
        ),
        "step": FakeEngine(device, step, outputs, aliases, decoder.step),
    }
    if decoder.form != "recurrent":
        tokens = TensorInfo("int64", (-1, -1))
        prefill = {TOKENS: tokens, POSITION: ints, LAST: ints, **memory, **caches}
        engines["prefill"] = FakeEngine(device, prefill, outputs, aliases, decoder.prefill)
    return engines


ENCODER_SPEC = GraphSpec("", (TensorSpec("image", "float", ("batch", "memory")),), ())


def fake_backend(
    device: FakeDevice,
    decoder: Decoder,
    steps: int = 4,
    engines: Mapping[str, FakeEngine] | None = None,
    kept: int = 4,
) -> DeviceBackend:
    """Makes a backend over fake engines that keeps the buffers of so many shapes."""
    engines = fake_engines(device, decoder) if engines is None else engines
    graphs = load_engine_set(
        engines["encoder"], engines["step"], engines.get("prefill"), decoder.capacity
    )
    kept_bytes = (kept << 20) - 1  # a context has 1 MB, the buffers are small beside it
    return DeviceBackend("fake", "fake 1", device, graphs, ENCODER_SPEC, steps, kept_bytes)

"""Engines for the fake device: an encoder and a small decoder with caches, computed by numpy."""

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

CacheForm = Literal["in place", "in turn", "recurrent"]
"""How a decoder returns its caches: written in place, in a second buffer, or as a state."""

CACHE_FORMS: tuple[CacheForm, ...] = ("in place", "in turn", "recurrent")
Arrays = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

WIDTH, VOCABULARY, LONGEST = 8, 23, 4096
KEY, VALUE, STATE, MEMORY, HEAD = "self_key_0", "self_value_0", recurrent_name(0), "m", "head_1"


@dataclass(frozen=True)
class Decoder:
    """An encoder and a decoder with random weights.

    Attributes:
        capacity: number of token positions in the caches.
        form: how the decoder returns its caches.
        seed: seed of the weights.
        weights: weights by name.
    """

    capacity: int = 20
    form: CacheForm = "in place"
    seed: int = 0
    weights: dict[str, NDArray[np.float32]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes = {
            "token": (VOCABULARY, WIDTH), "position": (LONGEST, WIDTH), "query": (WIDTH, WIDTH),
            "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH), "head": (WIDTH, VOCABULARY),
        }  # fmt: skip
        weights = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        object.__setattr__(self, "weights", weights)

    def encode(self, arrays: Arrays) -> Arrays:
        """Computes image (batch, memory) -> m (batch, memory, WIDTH)."""
        waves = np.sin(arrays["image"][:, :, None] * np.arange(1, WIDTH + 1, dtype=np.float32))
        return {MEMORY: waves.astype(np.float32)}

    def decode_token(
        self, token: Any, position: Any, caches: Arrays, memory: Any
    ) -> tuple[Arrays, Any]:
        """Decodes a token per row; returns the new caches and the hidden rows (batch, WIDTH)."""
        rows, batch = np.arange(len(token)), len(token)
        hidden = self.weights["token"][token] + self.weights["position"][position]
        if self.form == "recurrent":
            state = np.tanh(caches[STATE] @ self.weights["value"] + hidden)
            new: Arrays = {STATE: state.astype(np.float32)}
            hidden = state
        else:
            key, value = caches[KEY].copy(), caches[VALUE].copy()
            key[rows, position] = hidden @ self.weights["key"]
            value[rows, position] = hidden @ self.weights["value"]
            new = {KEY: key, VALUE: value}
            visible = np.arange(self.capacity) <= position[:, None]
            query = hidden @ self.weights["query"]
            scores = np.einsum("bw,bcw->bc", query, key)
            hidden = hidden + _attend(np.where(visible, scores, -np.inf), value)
        scores = np.einsum("bw,bmw->bm", hidden, memory)
        assert len(hidden) == batch
        return new, (hidden + _attend(scores, memory)).astype(np.float32)

    def step(self, arrays: Arrays) -> Arrays:
        """Computes the outputs of a step engine from its inputs token, position, caches and m."""
        token, position = arrays[TOKEN], arrays[POSITION]
        assert ((token >= 0) & (token < VOCABULARY)).all(), token
        assert ((position >= 0) & (position < self.capacity)).all(), position
        new, hidden = self.decode_token(token, position, arrays, arrays[MEMORY])
        return self._outputs(new, hidden, position)

    def prefill(self, arrays: Arrays) -> Arrays:
        """Computes the outputs of a prefill engine from tokens, position, last, caches and m."""
        tokens, position, last = arrays[TOKENS], arrays[POSITION], arrays[LAST]
        caches, hidden_rows = {KEY: arrays[KEY], VALUE: arrays[VALUE]}, []
        for index in range(tokens.shape[1]):
            at = np.minimum(position + index, self.capacity - 1)
            caches, hidden = self.decode_token(tokens[:, index], at, caches, arrays[MEMORY])
            hidden_rows.append(hidden)
        hidden = np.stack(hidden_rows, 1)[np.arange(len(tokens)), last]
        return self._outputs(caches, hidden, position + last)

    def _outputs(self, caches: Arrays, hidden: Any, position: Any) -> Arrays:
        logits = (hidden @ self.weights["head"] * 3).astype(np.float32)
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
        device: the device that it runs on.
        inputs: inputs by name.
        outputs: outputs by name.
        aliases: for each output that is written over an input, the name of that input.
        compute: computes the outputs from the inputs.
        refuses_at: number of runs that are enqueued before one is refused; None refuses none.
        fails_at: number of runs on the device before one fails there; None fails none.
        longest: largest number of tokens of a prompt; None is no limit.
        contexts: contexts that are not closed.
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
        assert not self.device.sealed, "a context was made after `sealed` was set"
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
        batch = next(iter(self.shapes.values()))[0]
        sizes = {0: batch, 1: self.shapes.get("image", (0, 0))[1]}
        info = {**self.engine.inputs, **self.engine.outputs}[name]
        return tuple(sizes[i] if size == -1 else size for i, size in enumerate(info.shape))

    def bind(self, name: str, buffer: Buffer) -> None:
        assert buffer.address % ALIGNMENT == 0, f"the address of {name} is not aligned"
        self.bound[name] = buffer

    def capture_obstacle(self) -> str | None:
        return None

    def enqueue(self) -> None:
        engine, device = self.engine, self.engine.device
        assert not device.recording or self.warm, "the first run with a shape was recorded"
        self._check_aliases()
        run = self._run(dict(self.bound), {n: self.shape(n) for n in self._tensors()})
        if engine.refuses_at is not None:
            engine.refuses_at -= 1
            if engine.refuses_at < 0:
                engine.refuses_at = None
                raise BackendError("refused")
        device.enqueues += not device.recording
        device.enqueue(Work(run))
        self.warm = True

    def close(self) -> None:
        assert not self.engine.device.queue, "a context was closed while work was enqueued"
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
            for input_name in self.engine.inputs:
                shared = self.bound[input_name].address == address
                assert shared == (input_name == source), f"{name} and {input_name} at {address}"

    def _run(self, bound: dict[str, Buffer], shapes: Shapes) -> Callable[[], None]:
        engine = self.engine

        def read(name: str) -> NDArray[Any]:
            dtype, shape = np.dtype(engine.inputs[name].dtype), shapes[name]
            size = int(np.prod(shape)) * dtype.itemsize
            data: NDArray[Any] = engine.device.bytes_at(bound[name].address, size)
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
                engine.device.bytes_at(bound[name].address, data.nbytes)[:] = np.frombuffer(
                    data.tobytes(), np.uint8
                )

        return run


def fake_engines(device: FakeDevice, decoder: Decoder) -> dict[str, FakeEngine]:
    """Returns the engines encoder, step and, unless the decoder is recurrent, prefill."""
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
    cached_shapes: int = 4,
) -> DeviceBackend:
    """Returns a backend over fake engines that keeps the workspaces of `cached_shapes` shapes."""
    engines = fake_engines(device, decoder) if engines is None else engines
    engine_set = load_engine_set(
        engines["encoder"], engines["step"], engines.get("prefill"), decoder.capacity
    )
    max_bytes = (cached_shapes << 20) - 1  # a context has 1 MiB, the buffers are much smaller
    return DeviceBackend("fake", "fake 1", device, engine_set, ENCODER_SPEC, steps, max_bytes)

"""Inputs that are encoded once and asked about several times: the tokens of fresh runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError, InputError, UsageError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.backends.gpu.backend import DeviceBackend
from hybrid_deploy.runtime.backends.onnxruntime import cuda_backend
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.protocol import Backend, Decoding
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session
from tests.export.lowering.test_custom_step import Recurrent
from tests.fakes.device import FakeDevice
from tests.fakes.engine import Decoder, fake_backend
from tests.fakes.host_device import HostDevice
from tests.models.zoo.prefix_decoders import PrefixDecoder

OPTIONS = BackendOptions(1)
SHAPES = {"tiny_path": (1, 8, 24), "prefix_path": (6, 24), "recurrent_path": (6,)}
PROMPTS = [[5], [7, 3], [9, 2, 4, 6, 8, 3], [5]]
"""Prompts for the step graph and for the prefill graph; the first comes again at the end."""


def on_cpu(bundle: Bundle) -> Backend:
    return OnnxRuntimeBackend(bundle, "fp32", OPTIONS)


def on_device(bundle: Bundle) -> Backend:
    return cuda_backend.load_on(HostDevice(), bundle, "fp32", OPTIONS, device_type="cpu", steps=3)


BACKENDS = [on_cpu, on_device]


@pytest.fixture(scope="module")
def prefix_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder-only bundle: its encoder returns the first content of the caches."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("encoded") / "prefix.bundle"
    inputs = torch.randn(2, 6, 24)
    export_model(PrefixDecoder().eval(), inputs, path, max_length=24, start_tokens=1)
    return path


@pytest.fixture(scope="module")
def recurrent_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("encoded") / "recurrent.bundle"
    export_model(Recurrent().eval(), torch.randn(2, 6), path, max_length=16, start_tokens=1)
    return path


def session_of(path: Path, load: Callable[[Bundle], Backend]) -> Session:
    bundle = open_bundle(path)
    return Session(bundle, "fp32", load(bundle))


def count_encoder_runs(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts every run of the encoder graph itself, whichever method of the backend starts it."""
    runs: list[int] = []
    if isinstance(backend, DeviceBackend):
        context = backend._engines.encoder_context
        enqueue = context.enqueue

        def counted() -> None:
            runs.append(1)
            enqueue()

        monkeypatch.setattr(context, "enqueue", counted)
        return runs
    assert isinstance(backend, OnnxRuntimeBackend)
    encoder = backend.encoder_session

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("run"):
                runs.append(1)
            return getattr(encoder, name)

    monkeypatch.setattr(OnnxRuntimeBackend, "encoder_session", property(lambda _: Counting()))
    return runs


@pytest.mark.parametrize("load", BACKENDS)
@pytest.mark.parametrize("kind", SHAPES)
def test_answers_equal_fresh_runs_and_the_encoder_runs_once(
    kind: str,
    load: Callable[[Bundle], Backend],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = session_of(request.getfixturevalue(kind), load)
    rng = np.random.default_rng(4)
    (tensor,) = session.bundle.graph("fp32", GraphRole.ENCODER).inputs
    shape = (3, *SHAPES[kind])
    inputs, other = ({tensor.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(2))
    prompts = [[token % 11 for token in prompt] for prompt in PROMPTS]
    expected = [session.run_arrays(inputs, prompt=prompt)[0] for prompt in prompts]
    assert len({str(results) for results in expected[:3]}) > 1, "the prompts must matter"
    runs = count_encoder_runs(session.backend, monkeypatch)
    with session.encode(inputs) as encoded:
        assert (encoded.batch, len(runs)) == (3, 1)
        for prompt, fresh in zip(prompts, expected, strict=True):
            answer, timings = session.run_encoded(encoded, prompt=prompt)
            assert answer == fresh
            assert timings.preprocess_ms < 1e3
        assert len(runs) == 1
        assert session.run_arrays(other)[0] != session.run_encoded(encoded)[0]
        again, _ = session.run_encoded(encoded, prompt=prompts[0])
        assert again == expected[0], "another batch of these shapes came between"
        assert len(runs) == 2


def test_beams_sampling_and_streams_leave_the_memory_as_it_was(prefix_path: Path) -> None:
    session = session_of(prefix_path, on_cpu)
    (tensor,) = session.bundle.graph("fp32", GraphRole.ENCODER).inputs
    values = np.random.default_rng(5).standard_normal((2, *SHAPES["prefix_path"]))
    inputs = {tensor.name: values.astype(np.float32)}
    encoded = session.encode(inputs)
    for options in (
        GenerateOptions(beams=3, n_best=2),
        GenerateOptions(temperature=0.9, seed=2),
        GenerateOptions(max_new_tokens=5),
    ):
        expected, _ = session.run_arrays(inputs, prompt=[7, 3], options=options)
        assert session.run_encoded(encoded, prompt=[7, 3], options=options)[0] == expected
    greedy, _ = session.run_arrays(inputs)
    with session.stream(encoded) as stream:
        streamed = [event.token for event in stream if event.row == 0]
    assert tuple(streamed) == greedy[0].tokens
    called: list[int] = []
    results, _ = session.run_encoded(encoded, on_token=lambda event: called.append(event.row))
    assert results == greedy and len(called) == sum(len(row.tokens) for row in greedy)


def test_two_answers_may_be_read_in_turns(prefix_path: Path) -> None:
    """Each has its own copy of the caches that the encoder fills."""
    session = session_of(prefix_path, on_cpu)
    (tensor,) = session.bundle.graph("fp32", GraphRole.ENCODER).inputs
    values = np.random.default_rng(6).standard_normal((1, *SHAPES["prefix_path"]))
    inputs = {tensor.name: values.astype(np.float32)}
    encoded, prompts = session.encode(inputs), ([7, 3], [9, 2, 4, 6, 8, 3])
    expected = [session.run_arrays(inputs, prompt=prompt)[0][0].tokens for prompt in prompts]
    with (
        session.stream(encoded, prompt=prompts[0]) as first,
        session.stream(encoded, prompt=prompts[1]) as second,
    ):
        pairs = list(itertools.zip_longest(first, second))
    for index, tokens in enumerate(expected):
        assert tuple(pair[index].token for pair in pairs if pair[index]) == tokens


def test_files_are_encoded_too(tiny_path: Path) -> None:
    session = session_of(tiny_path, on_cpu)
    (sample,) = session.bundle.manifest.golden
    encoded = session.encode([tiny_path / sample.file])
    (result,), _ = session.run_encoded(encoded)
    assert result.tokens == sample.tokens
    assert encoded.preprocess_ms > 0 and encoded.encoder_ms > 0


@pytest.mark.parametrize("load", BACKENDS)
def test_a_closed_input_and_one_of_another_session_are_refused(
    tiny_path: Path, load: Callable[[Bundle], Backend]
) -> None:
    session, other = session_of(tiny_path, load), session_of(tiny_path, load)
    encoded = session.encode({"image": np.zeros((1, 1, 8, 24), np.float32)})
    with pytest.raises(UsageError, match="encoded by another session"):
        other.run_encoded(encoded)
    encoded.close()
    encoded.close()
    with pytest.raises(BackendError, match="is closed; encode the input again"):
        session.run_encoded(encoded)
    with pytest.raises(InputError, match="width"):
        session.encode({"image": np.zeros((1, 1, 8, 2000), np.float32)})


def test_a_backend_that_keeps_no_memory_says_so(tiny_bundle: Bundle) -> None:
    class Once:
        name, version = "once", "1"

        def start(self, inputs: Mapping[str, NDArray[Any]]) -> Decoding:
            raise AssertionError

    session = Session(tiny_bundle, "fp32", Once())
    with pytest.raises(UsageError, match="once decodes an encoded input only once"):
        session.encode({"image": np.zeros((1, 1, 8, 24), np.float32)})


def test_the_copies_on_a_device_are_freed() -> None:
    device = FakeDevice()
    backend = fake_backend(device, Decoder())
    inputs = {"image": np.ones((2, 4), np.float32)}
    backend.start(inputs)
    before = device.allocated_bytes()
    encoded = backend.encode(inputs)
    assert device.allocated_bytes() > before
    encoded.close()
    assert device.allocated_bytes() == before
    backend.encode(inputs)  # dropped at once
    assert device.allocated_bytes() == before

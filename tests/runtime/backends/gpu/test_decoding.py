"""Steps, prompts and reordered sequences on a device, against the same decoder on the host."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.contract import LOGITS, NEXT_TOKEN, next_cache
from hybrid_deploy.errors import BackendError, InputError, UsageError
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo
from hybrid_deploy.runtime.backends.protocol import (
    GeneratesOnDevice,
    ReorderableDecoding,
    SeveralHeads,
)
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from hybrid_deploy.runtime.generation.token_loop import decode_greedily
from tests.closeness import assert_close_in_float32
from tests.fakes.device import FakeDevice
from tests.fakes.engine import (
    CACHE_FORMS,
    HEAD,
    KEY,
    MEMORY,
    CacheForm,
    Decoder,
    FakeEngine,
    fake_backend,
    fake_engines,
)
from tests.fakes.host_decoding import HostDecoding, decode_on_host, decode_step_by_step

RNG = np.random.default_rng(2)
LIMITS = Limits((), 0, 99, 20)


def image_of(batch: int, memory: int = 4) -> NDArray[np.float32]:
    return RNG.normal(size=(batch, memory)).astype(np.float32)


def array(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@pytest.mark.parametrize("form", CACHE_FORMS)
def test_step_by_step_gives_the_tokens_of_the_host(form: CacheForm) -> None:
    decoder, image = Decoder(form=form), image_of(3)
    prompts = [[1, 2, 3], [4], [5, 6]]
    decoding = fake_backend(FakeDevice(), decoder).start({"image": image})
    actual = decode_step_by_step(decoding, prompts, LIMITS)
    expected = decode_on_host(decoder, image, prompts, LIMITS)
    assert [row.tokens for row in actual] == [row.tokens for row in expected]


@pytest.mark.parametrize("form", CACHE_FORMS)
def test_reordered_sequences_continue_from_their_source(form: CacheForm) -> None:
    decoder = Decoder(form=form)
    image = np.repeat(image_of(1), 4, axis=0)  # beams have the same input
    actual = fake_backend(FakeDevice(), decoder).start({"image": image})
    expected = HostDecoding(decoder, image)
    rng = np.random.default_rng(0)
    for position in range(8):
        token, at = rng.integers(0, 20, 4), np.full(4, position)
        assert_close_in_float32(actual.step(token, at), expected.step(token, at))
        rows = [array(0, 1, 2, 3), array(3, 3, 0, 1), array(1, 0, 3, 2), array(2, 2, 2, 2)]
        for decoding in (actual, expected):
            decoding.reorder(rows[position % 4])


@pytest.mark.parametrize("form", CACHE_FORMS)
def test_steps_after_blocks_continue_with_the_same_caches(form: CacheForm) -> None:
    decoder, image = Decoder(form=form), image_of(2)
    actual = fake_backend(FakeDevice(), decoder, steps=3).start({"image": image})
    expected = HostDecoding(decoder, image)
    blocks = actual.step_blocks(array(1, 2), array(0, 0))
    tokens = np.concatenate([next(blocks).tokens for _ in range(2)])
    for position, fed in enumerate([array(1, 2), *tokens[:-1]]):
        logits = expected.step(fed, np.full(2, position))
        np.testing.assert_array_equal(logits.argmax(-1), tokens[position])
    if form == "recurrent":  # the next block has already changed its state
        return
    at = np.full(2, len(tokens))
    assert_close_in_float32(actual.step(tokens[-1], at), expected.step(tokens[-1], at))


def test_another_choice_of_sequences_is_refused() -> None:
    decoding = fake_backend(FakeDevice(), Decoder()).start({"image": image_of(2)})
    assert isinstance(decoding, ReorderableDecoding)
    assert decoding.select(array(0, 1)) is decoding
    for rows in (array(1, 0), array(0), array(0, 0, 1, 1)):
        with pytest.raises(UsageError) as caught:
            decoding.select(rows)
        assert str(caught.value) == (
            "fake decodes the 2 sequences that it began with; ask for one beam, or take "
            "--backend onnxruntime"
        )


def test_beam_search_is_refused() -> None:
    decoding = fake_backend(FakeDevice(), Decoder()).start({"image": image_of(1)})
    with pytest.raises(UsageError, match=r"ask for one beam, .* or take --backend onnxruntime$"):
        BeamSearch(decoding, [[1]], DecodingSettings(LIMITS, beams=Beams(2)))


def test_result_notes_once_why_steps_were_not_recorded() -> None:
    device, image = FakeDevice(), image_of(2)
    recorded = fake_backend(device, Decoder()).start({"image": image})
    assert decode_greedily(recorded, [[1]] * 2, LIMITS).notes == ()
    device.capture_refusal = "the library allocates"
    launched = fake_backend(device, Decoder()).start({"image": image})
    notes = decode_greedily(launched, [[1]] * 2, LIMITS).notes
    assert notes == ("steps were launched one by one: the library allocates",)


def test_further_heads_are_returned() -> None:
    decoder, image = Decoder(), image_of(2)
    decoding = fake_backend(FakeDevice(), decoder).start({"image": image})
    decoding.step(array(1, 2), array(0, 0))
    assert isinstance(decoding, SeveralHeads) and isinstance(decoding, GeneratesOnDevice)
    assert {name: head.shape for name, head in decoding.heads.items()} == {HEAD: (2, 2)}


def test_decoding_is_over_when_a_batch_of_the_same_shapes_starts() -> None:
    backend = fake_backend(FakeDevice(), Decoder())
    old = backend.start({"image": image_of(2)})
    other_shape = backend.start({"image": image_of(3)})
    blocks = old.step_blocks(array(1, 1), array(0, 0))
    next(blocks)
    new = backend.start({"image": image_of(2)})
    for call in (lambda: old.step(array(1, 1), array(0, 0)), lambda: next(blocks)):
        with pytest.raises(BackendError, match="this batch is over: another one was started"):
            call()
    new.step(array(1, 1), array(0, 0))
    other_shape.step(array(1, 1, 1), array(0, 0, 0))


def test_next_batch_finds_empty_caches() -> None:
    decoder, image = Decoder(), image_of(2)
    backend = fake_backend(FakeDevice(), decoder)
    first = backend.start({"image": image}).step(array(1, 2), array(0, 0)).copy()
    for position in range(5):
        backend.start({"image": image}).step(array(7, 8), np.full(2, position))
    again = backend.start({"image": image}).step(array(1, 2), array(0, 0))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("graph", ["step", "prefill", "encoder"])
def test_failure_names_the_graph_and_the_next_batch_is_right(graph: str) -> None:
    device, decoder, image = FakeDevice(), Decoder(), image_of(2)
    engines = fake_engines(device, decoder)
    backend = fake_backend(device, decoder, engines=engines)
    backend.start({"image": image})
    engines[graph].fails_at = 0
    name = "the encoder" if graph == "encoder" else f"the {graph} graph"
    with pytest.raises(BackendError) as caught:
        decoding = backend.start({"image": image})
        if graph == "step":
            decoding.step(array(1, 1), array(0, 0))
        decoding.prefill(np.ones((2, 3), np.int64), array(0, 0), array(2, 2))
    assert str(caught.value) == f"fake failed in {name}: an illegal address was read"
    actual = decode_greedily(backend.start({"image": image}), [[1]] * 2, LIMITS).sequences
    expected = decode_on_host(decoder, image, [[1]] * 2, LIMITS)
    assert [row.tokens for row in actual] == [row.tokens for row in expected]


def test_workspace_of_a_failed_run_is_not_used_again() -> None:
    device, image = FakeDevice(), image_of(2)
    engines = fake_engines(device, Decoder())
    backend = fake_backend(device, Decoder(), engines=engines)
    decoding = backend.start({"image": image})
    (failed,) = engines["step"].contexts
    engines["step"].fails_at = 0
    with pytest.raises(BackendError):
        decoding.step(array(1, 1), array(0, 0))
    backend.start({"image": image})
    assert failed not in engines["step"].contexts and len(engines["step"].contexts) == 1


def test_decoding_is_over_when_its_buffers_are_freed() -> None:
    backend = fake_backend(FakeDevice(), Decoder())
    old = backend.start({"image": image_of(1)})
    for batch in (2, 3, 4, 5):
        backend.start({"image": image_of(batch)})
    with pytest.raises(BackendError, match="this batch is over"):
        old.step(array(1), array(0))


def test_failed_allocation_frees_all_its_buffers() -> None:
    device = FakeDevice()
    backend = fake_backend(device, Decoder())
    device.available = 4000
    with pytest.raises(BackendError, match="out of memory"):
        backend.start({"image": image_of(8)})
    assert (device.allocations, device.host_buffers) == ({}, [])
    device.available = 1 << 20
    backend.start({"image": image_of(8)}).step(np.ones(8, np.int64), np.zeros(8, np.int64))


def test_workspaces_of_other_shapes_are_dropped_for_room() -> None:
    device, decoder = FakeDevice(), Decoder()
    backend = fake_backend(device, decoder)
    backend.start({"image": image_of(8)})
    device.available = device.allocated_bytes() + 1000
    image = image_of(7)
    actual = decode_greedily(backend.start({"image": image}), [[1]] * 7, LIMITS).sequences
    expected = decode_on_host(decoder, image, [[1]] * 7, LIMITS)
    assert [row.tokens for row in actual] == [row.tokens for row in expected]


def test_bad_inputs_are_refused_before_any_allocation() -> None:
    device = FakeDevice()
    backend = fake_backend(device, Decoder())
    with pytest.raises(InputError, match=r"expected the inputs \['image'\], got \['picture'\]"):
        backend.start({"picture": image_of(1)})
    assert not device.allocations


def test_too_long_prompt_is_an_input_error() -> None:
    device, decoder = FakeDevice(), Decoder()
    engines = fake_engines(device, decoder)
    engines["prefill"].longest = 4
    decoding = fake_backend(device, decoder, engines=engines).start({"image": image_of(1)})
    with pytest.raises(InputError, match="the engine takes 4 tokens"):
        decoding.prefill(np.ones((1, 5), np.int64), array(0), array(4))
    decoding.prefill(np.ones((1, 4), np.int64), array(0), array(3))


def without(engine: FakeEngine, name: str) -> FakeEngine:
    outputs = {n: info for n, info in engine.outputs.items() if n != name}
    return dataclasses.replace(engine, outputs=outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            lambda e: {"step": without(e["step"], NEXT_TOKEN), "prefill": None},
            "the step engine does not return next_token; build it again with this version",
        ),
        (
            lambda e: {"prefill": dataclasses.replace(e["prefill"], aliases={})},
            "the prefill engine writes self_key_0 in place and the step engine does not, or",
        ),
        (
            lambda e: {"encoder": without(e["encoder"], MEMORY)},
            "the step engine takes m, which the encoder engine does not return; build both again",
        ),
        (
            lambda e: {
                "step": dataclasses.replace(
                    e["step"],
                    outputs={**e["step"].outputs, LOGITS: TensorInfo("float16", (-1, 23))},
                )
            },
            "the step engine has logits in float16, expected float32",
        ),
        (
            lambda e: {
                "step": dataclasses.replace(
                    e["step"], aliases={**e["step"].aliases, next_cache(KEY): "self_value_0"}
                )
            },
            "the step engine writes self_key_0_next over self_value_0",
        ),
        (
            lambda e: {"step": without(e["step"], HEAD)},
            "only the prefill engine returns head_1",
        ),
    ],
)
def test_engines_that_do_not_fit_are_refused(changes: object, message: str) -> None:
    device, decoder = FakeDevice(), Decoder()
    engines = fake_engines(device, decoder)
    changed = {**engines, **changes(engines)}  # type: ignore[operator]
    engines = {name: engine for name, engine in changed.items() if engine is not None}
    with pytest.raises(BackendError) as caught:
        fake_backend(device, decoder, engines=engines)
    assert str(caught.value).startswith(message)
    assert not device.allocations

"""Greedy decoding in blocks on a device, against the same decoder step by step on the host."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.generation.sequences import Limits
from tests.closeness import assert_scores_close_in_float32
from tests.fakes.device import FakeDevice
from tests.fakes.engine import (
    CACHE_FORMS,
    VOCABULARY,
    CacheForm,
    Decoder,
    fake_backend,
    fake_engines,
)
from tests.fakes.host_decoding import (
    HostDecoding,
    Prompts,
    decode_on_device,
    decode_on_host,
    greedy_sequences,
)

RNG = np.random.default_rng(1)


def image_of(batch: int, memory: int = 5) -> NDArray[np.float32]:
    return RNG.normal(size=(batch, memory)).astype(np.float32)


def make_limits(length: int, capacity: int, end: tuple[int, ...] = ()) -> Limits:
    return Limits(end_tokens=end, pad_token=0, max_length=length, capacity=capacity)


def assert_same_as_host(
    decoder: Decoder, prompts: Prompts, limits: Limits, steps: int = 4
) -> FakeDevice:
    """Asserts that device and host decode the same tokens for a random input."""
    device, image = FakeDevice(), image_of(len(prompts))
    actual = decode_on_device(
        fake_backend(device, decoder, steps).start({"image": image}), prompts, limits
    )
    host = HostDecoding(decoder, image)
    expected = greedy_sequences(host, prompts, limits)
    assert [row.tokens for row in actual] == [row.tokens for row in expected]
    assert [row.finish for row in actual] == [row.finish for row in expected]
    for row, expected_row in zip(actual, expected, strict=True):
        assert_scores_close_in_float32(row.scores, expected_row.scores, host.largest_logit)
    return device


@pytest.mark.parametrize("form", CACHE_FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_tokens_are_those_of_the_host(form: CacheForm, steps: int) -> None:
    device = assert_same_as_host(Decoder(form=form), [[1]] * 3, make_limits(99, 20), steps)
    assert device.launches >= 19 // steps


@pytest.mark.parametrize("form", CACHE_FORMS)
@pytest.mark.parametrize("prompts", [[[1], [2, 3, 4]], [[5, 6, 7, 8, 9], [1], [2, 2]]])
def test_prompts_of_unequal_length(form: CacheForm, prompts: Prompts) -> None:
    assert_same_as_host(Decoder(form=form), prompts, make_limits(99, 20))


@pytest.mark.parametrize("count", range(1, 14))
def test_end_at_every_position(count: int) -> None:
    decoder, image = Decoder(), image_of(1)
    (endless,) = decode_on_host(decoder, image, [[1]], make_limits(99, 20))
    limits = make_limits(99, 20, end=(endless.tokens[count - 1],))
    (expected,) = decode_on_host(decoder, image, [[1]], limits)
    (actual,) = decode_on_device(
        fake_backend(FakeDevice(), decoder).start({"image": image}), [[1]], limits
    )
    assert (actual.tokens, actual.finish) == (expected.tokens, "end")


@pytest.mark.parametrize("capacity", [1, 2, 5, 8, 9, 13])
@pytest.mark.parametrize("form", CACHE_FORMS)
def test_capacity_that_is_no_multiple_of_a_block(capacity: int, form: CacheForm) -> None:
    assert_same_as_host(Decoder(capacity, form), [[1]] * 2, make_limits(99, capacity))


@pytest.mark.parametrize("length", [6, 7])
def test_prompt_that_fills_the_caches(length: int) -> None:
    assert_same_as_host(Decoder(7), [[3] * length], make_limits(99, 7))


def test_one_sequence_fills_the_caches_and_the_others_continue() -> None:
    assert_same_as_host(Decoder(9), [[1] * 9, [1], [2, 3]], make_limits(99, 9))


@pytest.mark.parametrize("capacity", [7, 8, 9])
def test_blocks_end_at_the_capacity(capacity: int) -> None:
    device = FakeDevice()
    decoding = fake_backend(device, Decoder(capacity)).start({"image": image_of(2)})
    blocks = list(decoding.step_blocks(np.array([1, 2]), np.array([0, 3])))
    assert sum(len(block.tokens) for block in blocks) == capacity
    assert {block.tokens.dtype for block in blocks} == {np.dtype(np.int64)}
    assert {block.scores.dtype for block in blocks} == {np.dtype(np.float32)}
    assert device.launches == -(-capacity // 4)
    assert list(decoding.step_blocks(np.array([1, 2]), np.array([capacity, capacity]))) == []


def test_next_block_is_enqueued_when_one_is_yielded() -> None:
    device = FakeDevice()
    decoding = fake_backend(device, Decoder()).start({"image": image_of(1)})
    blocks = decoding.step_blocks(np.array([1]), np.array([0]))
    first = next(blocks)
    assert device.launches == 2 and device.queue
    tokens = first.tokens.copy()
    next(blocks), next(blocks)
    assert np.array_equal(first.tokens, tokens)  # no later block overwrites it


@pytest.mark.parametrize("form", CACHE_FORMS)
def test_refused_capture_is_reported_and_gives_the_same_tokens(form: CacheForm) -> None:
    decoder, image, limits = Decoder(form=form), image_of(2), make_limits(99, 20)
    device = FakeDevice()
    device.capture_refusal = "the library allocates"
    decoding = fake_backend(device, decoder).start({"image": image})
    expected = decode_on_host(decoder, image, [[1]] * 2, limits)
    assert [r.tokens for r in decode_on_device(decoding, [[1]] * 2, limits)] == [
        r.tokens for r in expected
    ]
    assert device.launches == 0
    block = next(decoding.step_blocks(np.array([1, 1]), np.array([0, 0])))
    assert (block.run, block.reason) == ("enqueue", "the library allocates")


def test_recorded_block_is_reported() -> None:
    decoding = fake_backend(FakeDevice(), Decoder()).start({"image": image_of(1)})
    block = next(decoding.step_blocks(np.array([1]), np.array([0])))
    assert (block.run, block.reason) == ("graph", None)


@pytest.mark.parametrize("form", CACHE_FORMS)
def test_next_batch_is_right_after_a_stopped_one(form: CacheForm) -> None:
    backend, image = fake_backend(FakeDevice(), Decoder(form=form)), image_of(2)
    for _ in range(3):
        decoding = backend.start({"image": image})
        blocks = decoding.step_blocks(np.array([1, 1]), np.array([0, 0]))
        tokens = next(blocks).tokens
        blocks.close()
        (expected,) = decode_on_host(Decoder(form=form), image[:1], [[1]], make_limits(99, 20))
        assert tuple(tokens[:, 0]) == expected.tokens[: len(tokens)]


@pytest.mark.parametrize("count", range(6))
def test_refused_step_is_one_error_and_the_next_batch_is_right(count: int) -> None:
    device, decoder, image = FakeDevice(), Decoder(), image_of(1)
    device.capture_refusal = "no"
    engines = fake_engines(device, decoder)
    backend = fake_backend(device, decoder, engines=engines)
    decoding = backend.start({"image": image})
    engines["step"].refuses_at = count
    with pytest.raises(BackendError) as caught:
        list(decoding.step_blocks(np.array([1]), np.array([0])))
    assert str(caught.value) == f"fake failed in the step graph: refused (at token {count})"
    limits = make_limits(99, 20)
    again = decode_on_device(backend.start({"image": image}), [[1]], limits)
    assert again[0].tokens == decode_on_host(decoder, image, [[1]], limits)[0].tokens


@pytest.mark.parametrize(("count", "tokens"), [(0, "0 to 3"), (3, "0 to 3"), (4, "4 to 7")])
def test_failure_on_the_device_names_the_tokens_of_the_block(count: int, tokens: str) -> None:
    device, decoder, image = FakeDevice(), Decoder(), image_of(1)
    engines = fake_engines(device, decoder)
    backend = fake_backend(device, decoder, engines=engines)
    decoding = backend.start({"image": image})
    engines["step"].fails_at = count
    with pytest.raises(BackendError) as caught:
        list(decoding.step_blocks(np.array([1]), np.array([0])))
    assert str(caught.value) == (
        f"fake failed in the step graph: an illegal address was read (in tokens {tokens})"
    )
    limits = make_limits(99, 20)
    again = decode_on_device(backend.start({"image": image}), [[1]], limits)
    assert again[0].tokens == decode_on_host(decoder, image, [[1]], limits)[0].tokens


@pytest.mark.parametrize("form", CACHE_FORMS)
def test_nothing_is_allocated_for_known_shapes(form: CacheForm) -> None:
    device = FakeDevice()
    backend = fake_backend(device, Decoder(form=form))
    limits = make_limits(99, 20)
    for batch in (1, 3):  # two shapes; blocks that start at either cache buffer are recorded
        for prompt in ([1], [1, 2]):
            decode_on_device(backend.start({"image": image_of(batch)}), [prompt] * batch, limits)
    device.sealed = True
    before = device.allocated_bytes(), len(device.host_buffers)
    for number in range(200):
        batch = (1, 3)[number % 2]
        end = (int(RNG.integers(VOCABULARY)),)
        prompts = [[1, 2][: 1 + number % 2 if form != "recurrent" else 1]] * batch
        decode_on_device(
            backend.start({"image": image_of(batch)}), prompts, make_limits(99, 20, end)
        )
    assert (device.allocated_bytes(), len(device.host_buffers)) == before


def test_only_the_newest_workspaces_are_cached() -> None:
    device = FakeDevice()
    engines = fake_engines(device, Decoder())
    backend = fake_backend(device, Decoder(), engines=engines)
    buffer_counts = []
    for memory in (3, 4, 5, 6, 7, 8, 9):
        backend.start({"image": image_of(2, memory)})
        buffer_counts.append(len(device.allocations))
    assert buffer_counts[3:] == [buffer_counts[3]] * 4
    assert len(engines["step"].contexts) == 4
    backend.close()
    assert (device.allocations, device.host_buffers, engines["step"].contexts) == ({}, [], [])

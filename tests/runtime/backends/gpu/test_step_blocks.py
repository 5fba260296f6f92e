"""The greedy loop on a device, against the same decoder step by step on the host."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.generation.sequences import Limits
from tests.closeness import assert_scores_close_in_float32
from tests.fakes.device import FakeDevice
from tests.fakes.engine import FORMS, VOCABULARY, Decoder, Form, fake_backend, fake_engines
from tests.fakes.host_decoding import HostDecoding, Prompts, ahead, by_host, greedily

RNG = np.random.default_rng(1)


def image_of(batch: int, memory: int = 5) -> NDArray[np.float32]:
    return RNG.normal(size=(batch, memory)).astype(np.float32)


def until(length: int, capacity: int, end: tuple[int, ...] = ()) -> Limits:
    return Limits(end_tokens=end, pad_token=0, max_length=length, capacity=capacity)


def check(decoder: Decoder, prompts: Prompts, limits: Limits, steps: int = 4) -> FakeDevice:
    """Compares both loops on one random input."""
    device, image = FakeDevice(), image_of(len(prompts))
    got = ahead(fake_backend(device, decoder, steps).start({"image": image}), prompts, limits)
    host = HostDecoding(decoder, image)
    want = greedily(host, prompts, limits)
    assert [row.tokens for row in got] == [row.tokens for row in want]
    assert [row.finish for row in got] == [row.finish for row in want]
    for row, other in zip(got, want, strict=True):
        assert_scores_close_in_float32(row.scores, other.scores, host.largest_logit)
    return device


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_tokens_are_those_of_the_host(form: Form, steps: int) -> None:
    device = check(Decoder(form=form), [[1]] * 3, until(99, 20), steps)
    assert device.launches >= 19 // steps


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prompts", [[[1], [2, 3, 4]], [[5, 6, 7, 8, 9], [1], [2, 2]]])
def test_prompts_of_unequal_length(form: Form, prompts: Prompts) -> None:
    check(Decoder(form=form), prompts, until(99, 20))


@pytest.mark.parametrize("count", range(1, 14))
def test_end_at_every_position(count: int) -> None:
    decoder, image = Decoder(), image_of(1)
    (free,) = by_host(decoder, image, [[1]], until(99, 20))
    limits = until(99, 20, end=(free.tokens[count - 1],))
    (want,) = by_host(decoder, image, [[1]], limits)
    (got,) = ahead(fake_backend(FakeDevice(), decoder).start({"image": image}), [[1]], limits)
    assert (got.tokens, got.finish) == (want.tokens, "end")


@pytest.mark.parametrize("capacity", [1, 2, 5, 8, 9, 13])
@pytest.mark.parametrize("form", FORMS)
def test_capacity_that_is_no_multiple_of_a_block(capacity: int, form: Form) -> None:
    check(Decoder(capacity, form), [[1]] * 2, until(99, capacity))


@pytest.mark.parametrize("length", [6, 7])
def test_prompt_that_fills_the_caches(length: int) -> None:
    check(Decoder(7), [[3] * length], until(99, 7))


def test_one_row_fills_the_caches_and_the_others_go_on() -> None:
    check(Decoder(9), [[1] * 9, [1], [2, 3]], until(99, 9))


@pytest.mark.parametrize("capacity", [7, 8, 9])
def test_blocks_hold_every_token_up_to_the_capacity_and_none_more(capacity: int) -> None:
    device = FakeDevice()
    decoding = fake_backend(device, Decoder(capacity)).start({"image": image_of(2)})
    blocks = list(decoding.step_blocks(np.array([1, 2]), np.array([0, 3])))
    assert sum(len(block.tokens) for block in blocks) == capacity
    assert {block.tokens.dtype for block in blocks} == {np.dtype(np.int64)}
    assert {block.scores.dtype for block in blocks} == {np.dtype(np.float32)}
    assert device.launches == -(-capacity // 4)
    assert list(decoding.step_blocks(np.array([1, 2]), np.array([capacity, capacity]))) == []


def test_next_block_is_under_way_when_one_is_yielded() -> None:
    device = FakeDevice()
    decoding = fake_backend(device, Decoder()).start({"image": image_of(1)})
    blocks = decoding.step_blocks(np.array([1]), np.array([0]))
    first = next(blocks)
    assert device.launches == 2 and device.queue
    kept = first.tokens.copy()
    next(blocks), next(blocks)
    assert np.array_equal(first.tokens, kept)  # it owns its memory


@pytest.mark.parametrize("form", FORMS)
def test_refused_capture_is_said_and_gives_the_same_tokens(form: Form) -> None:
    decoder, image, limits = Decoder(form=form), image_of(2), until(99, 20)
    device = FakeDevice()
    device.refuses_capture = "the library allocates"
    decoding = fake_backend(device, decoder).start({"image": image})
    want = by_host(decoder, image, [[1]] * 2, limits)
    assert [r.tokens for r in ahead(decoding, [[1]] * 2, limits)] == [r.tokens for r in want]
    assert device.launches == 0
    block = next(decoding.step_blocks(np.array([1, 1]), np.array([0, 0])))
    assert (block.run, block.reason) == ("enqueue", "the library allocates")


def test_recorded_block_says_so() -> None:
    decoding = fake_backend(FakeDevice(), Decoder()).start({"image": image_of(1)})
    block = next(decoding.step_blocks(np.array([1]), np.array([0])))
    assert (block.run, block.reason) == ("graph", None)


@pytest.mark.parametrize("form", FORMS)
def test_stopping_leaves_the_batch_usable(form: Form) -> None:
    backend, image = fake_backend(FakeDevice(), Decoder(form=form)), image_of(2)
    for _ in range(3):
        decoding = backend.start({"image": image})
        blocks = decoding.step_blocks(np.array([1, 1]), np.array([0, 0]))
        tokens = next(blocks).tokens
        blocks.close()  # type: ignore[attr-defined]
        (want,) = by_host(Decoder(form=form), image[:1], [[1]], until(99, 20))
        assert tuple(tokens[:, 0]) == want.tokens[: len(tokens)]


@pytest.mark.parametrize("count", range(6))
def test_refused_step_is_one_error_and_the_backend_goes_on(count: int) -> None:
    device, decoder, image = FakeDevice(), Decoder(), image_of(1)
    device.refuses_capture = "no"
    engines = fake_engines(device, decoder)
    backend = fake_backend(device, decoder, engines=engines)
    decoding = backend.start({"image": image})
    engines["step"].refuses_at = count
    with pytest.raises(BackendError) as caught:
        list(decoding.step_blocks(np.array([1]), np.array([0])))
    assert str(caught.value) == f"fake failed in the step graph: refused (at token {count})"
    limits = until(99, 20)
    again = ahead(backend.start({"image": image}), [[1]], limits)
    assert again[0].tokens == by_host(decoder, image, [[1]], limits)[0].tokens


@pytest.mark.parametrize(("count", "tokens"), [(0, "0 to 3"), (3, "0 to 3"), (4, "4 to 7")])
def test_failure_on_the_device_names_the_block(count: int, tokens: str) -> None:
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
    limits = until(99, 20)
    again = ahead(backend.start({"image": image}), [[1]], limits)
    assert again[0].tokens == by_host(decoder, image, [[1]], limits)[0].tokens


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_allocated_once_everything_is_ready(form: Form) -> None:
    device = FakeDevice()
    backend = fake_backend(device, Decoder(form=form))
    limits = until(99, 20)
    for batch in (1, 3):  # two shapes, each with both sides of its caches recorded
        for prompt in ([1], [1, 2]):
            ahead(backend.start({"image": image_of(batch)}), [prompt] * batch, limits)
    device.sealed = True
    held, hosts = device.held(), len(device.hosts)
    for number in range(200):
        batch = (1, 3)[number % 2]
        end = (int(RNG.integers(VOCABULARY)),)
        prompts = [[1, 2][: 1 + number % 2 if form != "recurrent" else 1]] * batch
        ahead(backend.start({"image": image_of(batch)}), prompts, until(99, 20, end))
    assert (device.held(), len(device.hosts)) == (held, hosts)


def test_only_the_newest_shapes_are_kept() -> None:
    device = FakeDevice()
    engines = fake_engines(device, Decoder())
    backend = fake_backend(device, Decoder(), engines=engines)
    held = []
    for memory in (3, 4, 5, 6, 7, 8, 9):
        backend.start({"image": image_of(2, memory)})
        held.append(len(device.memory))
    assert held[3:] == [held[3]] * 4
    assert len(engines["step"].contexts) == 4
    backend.close()
    assert (device.memory, device.hosts, engines["step"].contexts) == ({}, [], [])

"""Calls of the tokenizers library that search for hours: a deadline or Ctrl-C ends the wait."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from hybrid_deploy.errors import BundleError
from hybrid_deploy.runtime.deadline import StoppedError, Until
from hybrid_deploy.runtime.tokenizer_calls import in_time
from hybrid_deploy.runtime.tokenizer_file import CheckedTokenizer, checked, parsed
from tests.fakes.plain_tokenizer import plain_tokenizer
from tests.fakes.slow_tokenizer import SLOW_STEP

LONG_TEXT = "a" * 8_000  # about a second for the slow step
LONGEST_S = 20.0  # of a busy machine


def tokenizer(**changes: Any) -> CheckedTokenizer:
    content = plain_tokenizer({"a": 0, "b": 1, "b!": 2}) | changes
    return parsed(checked(json.dumps(content).encode(), "t.json"))


def test_a_search_ends_at_the_deadline() -> None:
    slow, started_at = tokenizer(pre_tokenizer=SLOW_STEP), time.monotonic()
    with (
        Until(time.perf_counter() + 0.05),
        pytest.raises(StoppedError, match="shorten the text or give more time"),
    ):
        slow.encode(LONG_TEXT, add_special_tokens=False)
    assert time.monotonic() - started_at < LONGEST_S
    with Until(time.perf_counter() + LONGEST_S):
        assert slow.encode("a", add_special_tokens=False).ids == [0]


def test_other_threads_work_meanwhile() -> None:
    slow, passes = tokenizer(pre_tokenizer=SLOW_STEP), 0
    searching = threading.Thread(
        target=slow.encode, args=(LONG_TEXT,), kwargs={"add_special_tokens": False}
    )
    searching.start()
    while searching.is_alive():
        passes += 1
        time.sleep(0.01)
    assert passes > 10


def test_tokens_that_are_joined_for_long_are_an_error() -> None:
    with pytest.raises(BundleError, match="slow: it takes over 0 s for a text; export it"):
        in_time(lambda: time.sleep(1), "slow", longest_s=0.1)


def test_the_same_tokens_with_and_without_a_thread() -> None:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    plain = tokenizer(pre_tokenizer=split | {"pattern": {"String": "b!"}})
    searching = tokenizer(
        pre_tokenizer=split | {"pattern": {"Regex": "b!"}},
        decoder={"type": "Replace", "pattern": {"Regex": "x"}, "content": ""},
    )
    assert (plain.facts.tries, plain.facts.joins_quickly) == (2, True)
    assert not searching.facts.joins_quickly
    for text in ("ab!a", "", "a" * 99):
        ids = plain.encode(text, add_special_tokens=True).ids
        assert searching.encode(text, add_special_tokens=True).ids == ids
        assert searching.decode(ids).replace(" ", "") == plain.decode(ids).replace(" ", "")

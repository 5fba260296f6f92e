"""A manifest that does not fit its graphs is refused when the bundle is opened for running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import Vocabulary
from hybrid_deploy.errors import BundleError
from hybrid_deploy.runtime.session.runnable import TokenTexts
from hybrid_deploy.runtime.session.session import Session, load_session


def changed(path: Path, **fields: Any) -> Session:
    """Returns a session of a bundle with another manifest."""
    session = load_session(path, threads=1)
    manifest = msgspec.structs.replace(session.bundle.manifest, **fields)
    return Session(Bundle(path, manifest), "fp32", session.backend)


@pytest.mark.parametrize("capacity", [9, 2**31 - 1])
def test_a_capacity_above_the_caches(tiny_path: Path, capacity: int) -> None:
    with pytest.raises(BundleError, match=rf"capacity is {capacity} tokens, self_.* 8 positions;"):
        changed(tiny_path, capacity=capacity)
    changed(tiny_path, capacity=8)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_vocabulary_of_another_model(tiny_path: Path, count: int) -> None:
    words = Vocabulary(tuple("_^$abcdefgh"[:count]), ())
    with pytest.raises(BundleError, match=f"has {count} of the 11 tokens that the model chooses"):
        changed(tiny_path, vocabulary=words)


def test_a_token_without_a_text_is_said(tiny_path: Path) -> None:
    session = changed(tiny_path, vocabulary=Vocabulary(tuple("_^$abc"), (0, 1, 2)))
    images = np.random.default_rng(0).standard_normal((8, 1, 8, 24)).astype(np.float32)
    results, timings = session.run_arrays({"image": images})
    missing = [token for result in results for token in result.tokens if token > 5]
    assert timings.notes == (f"token {missing[0]} has no text in the bundle's vocabulary",)


def test_a_pad_token_that_the_decoder_does_not_know(tiny_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((8, 1, 8, 24)).astype(np.float32)
    session = load_session(tiny_path, threads=1)
    rows = [(*result.tokens, *range(11)) for result in session.run_arrays({"image": images})[0]]
    end = next(token for token in range(11) if len({row.index(token) for row in rows}) > 1)
    generation = msgspec.structs.replace(session.bundle.manifest.generation, end_tokens=(end,))
    results, _ = changed(tiny_path, generation=generation).run_arrays({"image": images})
    assert len({len(result.tokens) for result in results}) > 1, "some end before others"
    absurd = msgspec.structs.replace(generation, pad_token=2**31 - 1)
    assert changed(tiny_path, generation=absurd).run_arrays({"image": images})[0] == results


def test_timestamps_need_no_text() -> None:
    texts = TokenTexts(frozenset({1, 2}), first_timestamp=10)
    assert texts.missing((1, 10, 2, 15)) == ()
    assert texts.missing((1, 9, 10)) == ("token 9 has no text in the bundle's vocabulary",)

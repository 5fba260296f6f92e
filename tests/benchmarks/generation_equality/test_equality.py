"""A short form of `make generation`, which compares every Hugging Face model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers

from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from tests.benchmarks.generation_equality.equality import (
    BEAMED,
    GREEDY,
    LENGTH,
    compare,
    ragged_end,
)
from tests.models.zoo.check import export
from tests.models.zoo.huggingface import CASES, model_and_adapter


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


@pytest.mark.parametrize("name", ["bart", "whisper", "vit-trocr"])
def test_the_loop_and_the_search_give_what_generate_gives(name: str) -> None:
    model, adapted = model_and_adapter(name)
    start = FullRerun(adapted, LENGTH).start
    greedy = compare(name, model, start, GREEDY)
    beamed = compare(name, model, start, BEAMED)
    prompted = compare(name, model, start, BEAMED[:2], prompt=3)
    for run, least in ((greedy, 9), (beamed, 84), (prompted, 12)):
        assert (run.same, run.difference) == (run.sequences, "")
        assert run.sequences == least


@pytest.mark.slow
def test_an_exported_model_gives_what_generate_gives(tmp_path: Path) -> None:
    model, adapted = model_and_adapter("t5")
    case = dataclasses.replace(CASES["t5"], max_length=LENGTH)
    bundle = export(case, adapted, tmp_path / "bundle")
    start = load_backend("onnxruntime", bundle, "fp32", BackendOptions(threads=1)).start
    run = compare("t5", model, start, (*GREEDY, *BEAMED))
    assert (run.same, run.difference) == (run.sequences, "")
    assert run.sequences == 93


def test_the_end_token_comes_at_unlike_places() -> None:
    assert ragged_end([[5, 6, 7], [6, 8, 7], [9, 9, 6]]) == 6

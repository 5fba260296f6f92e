"""Tests a part of `make generation`: three models, compared with generate()."""

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
    BEAM_OPTIONS,
    GREEDY_OPTIONS,
    LENGTH,
    compare,
    ragged_end,
)
from tests.models.zoo.check import export
from tests.models.zoo.transformers.models import CASES, model_and_adapter


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


@pytest.mark.parametrize("name", ["bart", "whisper", "vit-trocr"])
def test_greedy_loop_and_beam_search_match_generate(name: str) -> None:
    model, exportable = model_and_adapter(name)
    start = FullRerun(exportable, LENGTH).start
    greedy = compare(name, model, start, GREEDY_OPTIONS)
    beamed = compare(name, model, start, BEAM_OPTIONS)
    prompted = compare(name, model, start, BEAM_OPTIONS[:2], prompt=3)
    for run, count in ((greedy, 9), (beamed, 84), (prompted, 12)):
        assert (run.same, run.difference) == (run.sequences, "")
        assert run.sequences == count


@pytest.mark.slow
def test_an_exported_model_matches_generate(tmp_path: Path) -> None:
    model, exportable = model_and_adapter("t5")
    case = dataclasses.replace(CASES["t5"], max_length=LENGTH)
    bundle = export(case, exportable, tmp_path / "bundle")
    start = load_backend("onnxruntime", bundle, "fp32", BackendOptions(threads=1)).start
    run = compare("t5", model, start, (*GREEDY_OPTIONS, *BEAM_OPTIONS))
    assert (run.same, run.difference) == (run.sequences, "")
    assert run.sequences == 93


def test_the_end_token_stops_sequences_at_different_positions() -> None:
    assert ragged_end([[5, 6, 7], [6, 8, 7], [9, 9, 6]]) == 6

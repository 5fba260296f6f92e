"""Tests of the comparison on a tiny model, with onnxruntime.quantization as the only rival."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.calibration.samples.samples import open_samples
from hybrid_deploy.contract import GraphRole
from tests.benchmarks.quantization_rivals.attempts import ATTEMPTS, Attempt
from tests.benchmarks.quantization_rivals.calls import CallReader, read_calls, write_calls
from tests.benchmarks.quantization_rivals.measure import load, time_interleaved
from tests.benchmarks.quantization_rivals.recording import record_calls
from tests.benchmarks.quantization_rivals.variants import add_variant, size_bytes
from tests.benchmarks.quantization_rivals.workshop import RivalError, Workshop

INT4 = Attempt("onnxruntime", step="--mode int4 --block 16")


@pytest.fixture
def workshop(own_path: Path, page: Path, tmp_path: Path) -> Workshop:
    bundle = open_bundle(own_path)
    samples = open_samples(page, bundle.manifest.preprocess)
    calls = record_calls(bundle, "fp32", samples, steps=100)
    folder = tmp_path / "workshop"
    folder.mkdir()
    return Workshop(folder, bundle, "fp32", calls, {"onnxruntime": Path(sys.executable)})


def test_calls_are_read_back_from_a_file(tmp_path: Path) -> None:
    calls = [{"a": np.full((1, size), size), "b/c": np.zeros(2)} for size in (1, 2, 3)]
    write_calls(tmp_path / "calls.npz", calls)
    reader = CallReader(read_calls(tmp_path / "calls.npz"))
    reader.set_range(1, 2)
    read = reader.get_next()
    assert read is not None and read["a"].tolist() == [[2, 2]] and set(read) == {"a", "b/c"}
    assert reader.get_next() is None


def test_steps_are_recorded_at_every_position(own_path: Path, page: Path) -> None:
    bundle = open_bundle(own_path)
    samples = open_samples(page, bundle.manifest.preprocess)
    calls = record_calls(bundle, "fp32", samples, steps=100)
    steps = calls[GraphRole.STEP]
    assert len(calls[GraphRole.ENCODER]) == 1
    assert [int(step["position"][0]) for step in steps] == list(range(len(steps)))
    assert not steps[0]["self_key_0"].any() and steps[-1]["self_key_0"].any()
    fewer = record_calls(bundle, "fp32", samples, steps=2)[GraphRole.STEP]
    assert [int(step["position"][0]) for step in fewer] == [0, len(steps) - 1]


def test_a_rivals_graph_runs_as_a_variant(own_path: Path, workshop: Workshop, page: Path) -> None:
    encoder, step = (workshop.quantize(INT4, r) for r in (GraphRole.ENCODER, GraphRole.STEP))
    assert "MatMulNBits" in {node.op_type for node in onnx.load(step).graph.node}
    bundle = add_variant(open_bundle(own_path), "fp32", "theirs", INT4.precision, encoder, step)
    samples = open_samples(page, bundle.manifest.preprocess)
    sessions = {name: load(bundle, name) for name in ("fp32", "theirs")}
    times = time_interleaved(sessions, [samples[0]], rounds=2)
    assert times.keys() == sessions.keys() and times["theirs"]["step_ms"] > 0
    assert 0 < size_bytes(bundle, "theirs") < size_bytes(bundle, "fp32")


def test_a_failed_job_raises_the_same_error_again(workshop: Workshop) -> None:
    attempt = Attempt("onnxruntime", step="--mode int4 --block 15")
    for _ in range(2):
        with pytest.raises(RivalError, match=r"^step: \w*Error"):
            workshop.quantize(attempt, GraphRole.STEP)


def test_every_attempt_is_different() -> None:
    assert len({(attempt.rival, attempt.options) for attempt in ATTEMPTS}) == len(ATTEMPTS)

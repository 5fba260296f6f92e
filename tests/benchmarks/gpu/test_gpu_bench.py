"""Tests of the benchmark's command on a CPU, so that it still works when a GPU is there."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from hybrid_deploy.bundle.bundle import open_bundle
from tests.benchmarks.gpu import __main__ as command
from tests.benchmarks.gpu import subjects
from tests.benchmarks.gpu.rivals import RIVALS
from tests.benchmarks.gpu.subjects import Subject

MODEL = "digits"


@pytest.fixture
def tiny_subject(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(MODEL, open_bundle(tiny_path), "fp32", 32)
    monkeypatch.setattr(command, "make_subject", lambda name, variant, work: subject)


@pytest.mark.usefixtures("tiny_subject")
def test_every_rival_has_a_row_with_a_note() -> None:
    rivals = [name for name in RIVALS if name != "PyTorch torch.compile"]  # takes a minute
    options = [option for rival in rivals for option in ("--rival", rival)]
    arguments = ["--cpu", "--model", MODEL, "--variant", "fp32", "--rounds", "1", *options]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 0, done.output
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if f"| {MODEL}" in line]
    assert len(rows) == 2 * len(rivals)
    notes = {row[2].strip(): row[-1].strip() for row in rows}
    assert notes["PyTorch eager, static caches"] == "float32"
    assert notes["ONNX Runtime CPU"].endswith("fed back by the host")
    assert notes["TensorRT, recorded blocks"].startswith("skipped: ")
    timed = [row for row in rows if "skipped" not in row[-1]]
    assert all(float(row[4]) > 0 and float(row[5]) > 0 for row in timed)


def test_without_a_gpu_the_error_names_the_cpu_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(command.main, [])
    assert done.exit_code == 2
    assert "PyTorch sees no GPU here; --cpu tries the command without one" in done.stderr


@pytest.mark.slow
def test_the_sizes_of_the_digit_reader_are_read_from_its_graph(tmp_path: Path) -> None:
    subject = subjects.make_subject("digits", "fp16", tmp_path)
    sizes = subject.sizes()
    assert (sizes.layers, sizes.heads * sizes.head_dim) == (2, 96)
    one, eight = subject.step_bytes(1), subject.step_bytes(8)
    assert one is not None and eight is not None and one < eight < 8 * one

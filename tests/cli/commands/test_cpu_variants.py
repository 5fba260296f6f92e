"""The commands with variants for ONNX Runtime's CPU, which have a refine graph."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle
from hybrid_deploy.bundle.manifest import GoldenSample
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import load_session
from tests.fakes.size_limits import lift_size_limits

Run = Callable[..., Result]

FORMS = ("fp32", "fp32-cpu", "int8-cpu")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Two pictures of noise, with labels."""
    folder = tmp_path / "lines"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, width in enumerate((40, 64)):
        pixels = rng.integers(0, 256, (32, width), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "labels.csv").write_text("file,text\n0.png,333333\n1.png,333333\n")
    return folder


@pytest.fixture
def forms(
    bundle: Bundle, images: list[dict[str, NDArray[np.float32]]], lines: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bundle:  # fmt: skip
    """The tiny bundle with a golden sample; `fp32-cpu` and `int8-cpu` project in two stages.

    The memory of `int8-cpu` is stored in 8 bits.
    """
    lift_size_limits(monkeypatch)
    (result,), _ = load_session(bundle.folder).run_files([lines / "0.png"])
    golden = GoldenSample("golden/0.png", result.tokens, result.text or "")
    (bundle.folder / "golden").mkdir(exist_ok=True)
    (bundle.folder / golden.file).write_bytes((lines / "0.png").read_bytes())
    seal_bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, golden=(golden,)))
    for form in FORMS[1:]:
        quantize_bundle(bundle.folder, form, images)
    return open_bundle(bundle.folder)


@pytest.fixture
def run(forms: Bundle) -> Run:
    def invoke(command: str, *options: object) -> Result:
        return CliRunner().invoke(main, [command, str(forms.folder), *map(str, options)])

    return invoke


def test_verify(run: Run) -> None:
    result = run("verify", "--format", "json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [(row["variant"], row["verdict"]) for row in rows] == [(form, "ok") for form in FORMS]


def test_inspect_counts_the_operators_of_a_cpu(run: Run, forms: Bundle) -> None:
    result = run("inspect")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    graphs = [row[1] for row in rows if row and row[0] == "fp32-cpu" and row[1] in list(GraphRole)]
    assert graphs == ["encoder", "prefill", "step", "refine", "beam_step"]
    costs = {
        (form, role): graph.cost for form in FORMS for role, graph in forms.graphs(form).items()
    }
    for role in (GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP):
        float_cost = costs["fp32", role]
        assert float_cost is not None
        for form in FORMS[1:]:
            cost = costs[form, role]
            # other operators compute the same products, and those of the 4 tokens scored again
            again = 2 * 4 * 32 if form == "int8-cpu" and role is not GraphRole.ENCODER else 0
            assert cost is not None and cost.flops == float_cost.flops + again, (form, role)
    step, float_step = costs["fp32-cpu", GraphRole.STEP], costs["fp32", GraphRole.STEP]
    assert step is not None and float_step is not None
    assert step.weight_bytes < float_step.weight_bytes, "the approximate projection reads 8 bits"


def test_memory_in_8_bits_does_not_count_as_cache(run: Run) -> None:
    result = run("inspect")
    sizes = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines()[3:7] if line}
    assert sizes["fp32"] == sizes["fp32-cpu"] == sizes["int8-cpu"]


def test_profile(run: Run, lines: Path) -> None:
    options = ("--variant", "fp32-cpu", "--runs", 3, "--warmup", 1, "--threads", 1)
    result = run("profile", lines / "0.png", *options, "--format", "json")
    assert result.exit_code == 0
    stages = {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}
    assert stages["next token"]["count"] > 0 and stages["next token"]["p50_ms"] > 0


def test_compare(run: Run, lines: Path) -> None:
    options = ("--samples", lines, "--backend", "onnxruntime", "--threads", 1, "--format", "json")
    result = run("compare", *options)
    assert result.exit_code == 0
    rows = {row["variant"]: row for row in json.loads(result.stdout)}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len({row["cer_percent"] for row in rows.values()}) == 1


def test_the_refine_graph_counts_into_the_time_of_a_token(
    forms: Bundle, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load_session(forms.folder, variant="fp32-cpu", threads=1)
    refine = session.backend.refine_session  # type: ignore[attr-defined]
    assert refine is not None
    pause_ms = 20.0

    class Slow:
        """The session of the refine graph, slowed down."""

        def run(self, *arguments: object) -> object:
            time.sleep(pause_ms / 1e3)
            return refine.run(*arguments)

    sessions = session.backend._sessions  # type: ignore[attr-defined]
    monkeypatch.setitem(sessions, GraphRole.REFINE, Slow())
    scores = GenerateOptions(scores=True)  # scores need every exact logit
    _, timings = session.run_files([lines / "0.png"], options=scores)
    assert timings.step_ms and min(timings.step_ms) >= pause_ms
    assert timings.first_token_ms >= pause_ms


def test_build_refuses_in_one_line(run: Run) -> None:
    result = run("build", "--target", "rtx:sm_86", "--variant", "fp32-cpu")
    assert result.exit_code == 1
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert failed == [
        "failed: variant fp32-cpu is not for TensorRT; its encoder is fp32-cpu: it has operators "
        "of ONNX Runtime's CPU, which TensorRT refuses; take fp16"
    ]


def test_a_target_refuses_a_form_that_it_lacks(run: Run) -> None:
    for target, reason in (
        ("orin", "Jetson Orin (sm_87) has no int8-cpu for the encoder: it has unsigned"),
        ("rtx:any", "any GPU from Ampere on has no int8-cpu for the encoder: it has unsigned"),
    ):
        result = run("quantize", "--precision", "int4-cpu", "--target", target)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {reason}")
    result = run("quantize", "--precision", "fp32-cpu", "--target", "cpu", "--name", "again")
    assert result.exit_code == 0

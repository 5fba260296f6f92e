"""The gate notices a changed weight in any graph, whatever the batch and the start tokens are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import ParityError
from hybrid_deploy.export.export_job import ExportJob, GraphForm
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.parity import gate
from hybrid_deploy.export.parity.gate import check_export
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.size_checks import checked_sizes, graph_multiples
from hybrid_deploy.export.parity.special_tokens import TokenChoice
from tests.conftest import VOCABULARY, make_tiny, tiny_job
from tests.fakes.edited_graph import edit_graph

HEAD = "head.weight_transposed"


def scale_column(array: NDArray[Any]) -> None:
    """Scales the largest column of a matrix by 1.001."""
    array[..., np.abs(array).reshape(-1, array.shape[-1]).sum(0).argmax()] *= 1.001


@pytest.fixture(scope="module")
def large_job() -> ExportJob:
    """A tiny model whose logits reach 100."""
    model = make_tiny()
    with torch.no_grad():
        model.head.weight.mul_(25)
        model.head.bias.mul_(25)
    return tiny_job(model)


@pytest.fixture(scope="module")
def large_path(large_job: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.bundle"
    report = run_export(large_job, path)
    assert report.parity.accepted_difference > 1e-4, "the logits are of size 100"
    return path


@pytest.fixture(scope="module")
def single_job() -> ExportJob:
    """The tiny model with graphs of one sequence, whose start token goes through no prefill."""
    return replace(tiny_job(make_tiny()), form=GraphForm(batch=1))


@pytest.fixture(scope="module")
def single_path(single_job: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "single.bundle"
    run_export(single_job, path)
    return path


def copied(path: Path, tmp_path: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(path, tmp_path / "copy.bundle")))


ROLES = [GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP, GraphRole.BEAM_STEP]


@pytest.mark.parametrize("role", ROLES)
def test_a_change_of_any_graph_is_refused(
    tiny_path: Path, tiny_export: ExportJob, tmp_path: Path, role: GraphRole
) -> None:
    bundle = copied(tiny_path, tmp_path)
    assert set(bundle.graphs("fp32")) == set(ROLES)
    check_export(tiny_export, bundle, TokenChoice(VOCABULARY))
    edit_graph(bundle, role, scale_column)
    with pytest.raises(ParityError, match="differ from the model"):
        check_export(tiny_export, bundle, TokenChoice(VOCABULARY))


@pytest.mark.parametrize("role", [GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP])
def test_a_change_of_any_graph_with_a_fixed_batch_is_refused(
    single_path: Path, single_job: ExportJob, tmp_path: Path, role: GraphRole
) -> None:
    bundle = copied(single_path, tmp_path)
    assert set(bundle.graphs("fp32")) == set(ROLES[:3])
    edit_graph(bundle, role, scale_column)
    with pytest.raises(ParityError, match="differ from the model"):
        check_export(single_job, bundle, TokenChoice(VOCABULARY))


@pytest.mark.parametrize("role", ROLES[1:])
def test_a_change_of_a_model_with_large_logits_is_refused(
    large_path: Path, large_job: ExportJob, tmp_path: Path, role: GraphRole
) -> None:
    bundle = copied(large_path, tmp_path)
    edit_graph(bundle, role, scale_column, HEAD)
    with pytest.raises(ParityError, match=r"off by \S+, accepted \S+; no bundle"):
        check_export(large_job, bundle, TokenChoice(VOCABULARY))


def test_a_graph_that_was_not_run_is_a_defect(
    tiny_bundle: Bundle, tiny_export: ExportJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "compare_beams", lambda *arguments: Parity())
    with pytest.raises(AssertionError, match="has not compared beam_step with the model"):
        check_export(tiny_export, tiny_bundle, TokenChoice(VOCABULARY))


def test_every_kind_of_comparison_is_counted(tiny_bundle: Bundle, tiny_export: ExportJob) -> None:
    parity = check_export(tiny_export, tiny_bundle, TokenChoice(VOCABULARY))
    # a batch of prompts of 1 token and one of unequal lengths, at the example and at every size;
    # prefills of 1, 2, 3, 4, 7 and 8 tokens for two inputs; two beams and two copies of two inputs
    encoder = ir.load(tiny_bundle.graph_path("fp32", GraphRole.ENCODER))
    runs = checked_sizes(tiny_export.spec.dynamic, graph_multiples(encoder))
    assert len(runs) > 3
    at_sizes = sum(2 * batch for _, batch in runs)
    assert (parity.sequences, parity.prompts) == (4, 2 * 2 + at_sizes + 6 * 2 + 4 + 4)
    assert parity.longest == 8
    assert {"1x8x16", "1x8x8", "1x8x64"} <= set(parity.sizes)
    assert parity.ties == 0

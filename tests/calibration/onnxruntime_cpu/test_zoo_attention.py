"""The CPU passes on attention as the transformers library writes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.files import load_graphs
from tests.closeness import float32_error, largest
from tests.fakes.size_limits import lift_size_limits
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import random_tokens
from tests.models.zoo.cases import find
from tests.models.zoo.check import export
from tests.models.zoo.reference import ROUNDINGS, encoded, rerun


@pytest.mark.slow
def test_qkv_products_are_packed_and_self_attention_is_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    lift_size_limits(monkeypatch)
    case = find("hf-bart")
    model = case.model()
    bundle = export(case, model, tmp_path / "bundle")
    samples = [
        {name: value.numpy() for name, value in case.inputs(2, size).items()} for size in case.sizes
    ]
    report = quantize_bundle(bundle.folder, "fp32-cpu", samples)
    assert report.evaluation.agreement.token_share == 1.0
    # float32, in other operators; weights of this size make its rounding errors twice as large
    memory = encoded(model, case.inputs(2, case.sizes[0]))
    logit = largest(rerun(model, random_tokens(VOCABULARY, 2, 12), memory))
    assert report.evaluation.divergence.largest_difference < float32_error(logit, 2 * ROUNDINGS)
    step = load_graphs(report.bundle, "fp32-cpu")[GraphRole.STEP].graph
    counts = Counter(node.op_type for node in step)
    # two layers; cross-attention has a mask and is not rewritten
    assert (counts["GroupQueryAttention"], counts["Attention"]) == (2, 2)
    assert counts["Split"] == 0, "GroupQueryAttention takes the packed product"

"""A budget of accuracy, from `quantize_bundle` to the files of the variant."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.evaluation.decode_all import decode_all
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.calibration.variants.request import QuantizationInputs
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError
from tests.fakes.edited_bundle import with_close_logits, with_sore_head


@pytest.fixture
def sore(bundle: Bundle) -> Bundle:
    return with_sore_head(bundle)


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def float_weights(bundle: Bundle, variant: str) -> set[str]:
    """Names the matrices of both decoder graphs that are float32."""
    found = set()
    for role in (GraphRole.PREFILL, GraphRole.STEP):
        graph = onnx.load(bundle.graph_path(variant, role), load_external_data=False).graph
        found |= {
            tensor.name
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name.endswith("_transposed")
        }
    return found


@pytest.mark.parametrize("encoder", [None, "bf16"])  # the latter is evaluated by an emulation
def test_a_layer_stays_float_so_that_the_budget_holds(
    sore: Bundle, images: list[Inputs], encoder: str | None
) -> None:
    whole = quantize_bundle(sore.folder, "int8-weights", images, encoder=encoder, name="whole")
    lost = whole.evaluation.drop
    assert (lost, whole.layers_in_float, whole.ranking) == (100, (), ())
    report = quantize_bundle(
        sore.folder, "int8-weights", images, encoder=encoder, name="held", max_drop=lost / 2
    )
    assert report.evaluation.drop == 0
    assert report.layers_in_float == ("decoder/head",)
    assert len(report.ranking) == 7
    variant = open_bundle(sore.folder).variant("held")
    assert variant.provenance.endswith("from fp32, float: decoder/head")
    assert "float:" not in report.bundle.variant("whole").provenance
    assert float_weights(report.bundle, "whole") == set()
    assert float_weights(report.bundle, "held") == {"head.weight_transposed"}


def test_the_budget_is_of_the_metric(sore: Bundle, images: list[Inputs]) -> None:
    texts = decode_all(sore, "fp32", images).texts
    assert texts is not None
    # float reads two of three lines as they are labelled, the sore variant none
    labels = [texts[0], texts[1], texts[2][::-1] + "0"]
    pairs = list(zip(images, labels, strict=True))
    data = QuantizationInputs(images[:1], evaluation=pairs, metric="exact")
    loose = quantize_bundle(sore.folder, "int4-weights", data, max_drop=70, name="loose")
    assert loose.evaluation.drop == pytest.approx(200 / 3)
    assert loose.evaluation.drop_unit == "exact"
    assert (loose.layers_in_float, loose.ranking) == ((), ())
    tight = quantize_bundle(sore.folder, "int4-weights", data, max_drop=60, name="tight")
    assert (tight.evaluation.drop, tight.layers_in_float) == (0, ("decoder/head",))
    assert tight.evaluation.samples == 3


@pytest.mark.parametrize(
    ("precision", "floats", "reason"),
    [
        ("int8-weights", "fp16", "100.00 are lost even with every layer float"),
        ("fp16", None, "fp16 loses 100.00"),
    ],
)
def test_a_budget_that_cannot_hold(
    bundle: Bundle, images: list[Inputs], precision: str, floats: str | None, reason: str
) -> None:
    folder = with_close_logits(bundle).folder
    before = files(folder)
    with pytest.raises(CalibrationError) as caught:
        quantize_bundle(folder, precision, images, floats=floats, max_drop=99.5)
    assert str(caught.value) == (
        f"the budget of 99.5 % of tokens does not hold: {reason}; no variant was written"
    )
    assert files(folder) == before

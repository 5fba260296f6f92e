"""An accuracy budget, from `quantize_bundle` to the files of the variant."""

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
from tests.fakes.edited_bundle import with_close_logits, with_sensitive_head


@pytest.fixture
def sensitive(bundle: Bundle) -> Bundle:
    return with_sensitive_head(bundle)


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def float_weights(bundle: Bundle, variant: str) -> set[str]:
    """Returns the names of the float32 matrices of both decoder graphs."""
    names = set()
    for role in (GraphRole.PREFILL, GraphRole.STEP):
        graph = onnx.load(bundle.graph_path(variant, role), load_external_data=False).graph
        names |= {
            tensor.name
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name.endswith("_transposed")
        }
    return names


@pytest.mark.parametrize("encoder", [None, "bf16"])  # a bf16 encoder is evaluated by an emulation
def test_a_layer_stays_in_float_so_that_the_budget_holds(
    sensitive: Bundle, images: list[Inputs], encoder: str | None
) -> None:
    quantized = quantize_bundle(
        sensitive.folder, "int8-weights", images, encoder=encoder, name="quantized", max_drop=100
    )
    drop = quantized.evaluation.drop
    assert (drop, quantized.layers_in_float, quantized.ranking) == (100, (), ())
    report = quantize_bundle(
        sensitive.folder,
        "int8-weights",
        images,
        encoder=encoder,
        name="within-budget",
        max_drop=drop / 2,
    )
    assert report.evaluation.drop == 0
    assert report.layers_in_float == ("decoder/head",)
    assert len(report.ranking) == 7
    variant = open_bundle(sensitive.folder).variant("within-budget")
    assert variant.provenance.endswith("from fp32, float: decoder/head")
    assert "float:" not in report.bundle.variant("quantized").provenance
    assert float_weights(report.bundle, "quantized") == set()
    assert float_weights(report.bundle, "within-budget") == {"head.weight_transposed"}


def test_the_budget_is_in_units_of_the_metric(sensitive: Bundle, images: list[Inputs]) -> None:
    texts = decode_all(sensitive, "fp32", images).texts
    assert texts is not None
    # float decodes two of three texts as labelled, the quantized variant none
    labels = [texts[0], texts[1], texts[2][::-1] + "0"]
    pairs = list(zip(images, labels, strict=True))
    data = QuantizationInputs(images[:1], evaluation=pairs, metric="exact")
    loose = quantize_bundle(sensitive.folder, "int4-weights", data, max_drop=70, name="loose")
    assert loose.evaluation.drop == pytest.approx(200 / 3)
    assert loose.evaluation.drop_unit == "exact"
    assert (loose.layers_in_float, loose.ranking) == ((), ())
    tight = quantize_bundle(sensitive.folder, "int4-weights", data, max_drop=60, name="tight")
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

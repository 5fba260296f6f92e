from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.manifest import Precision
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.calibration.evaluation.report import describe
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.statistics.scales import SCALES_FILE, read_scales
from hybrid_deploy.calibration.variants.request import QuantizationInputs
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import (
    BackendError,
    CalibrationError,
    InputError,
    OutputExistsError,
    UsageError,
)
from hybrid_deploy.export.exporter import run_export
from tests.conftest import TinyReader, tiny_job

Images = list[dict[str, NDArray[np.float32]]]


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("precision", "parts", "largest_share"),
    [
        ("fp16", Precision("fp16", "fp16"), 0.65),
        ("int8", Precision("int8", "int8-weights"), 0.6),
        ("int8-cpu", Precision("int8-cpu", "int8-cpu"), 0.6),
        ("int4-cpu", Precision("int8-cpu", "int4-cpu"), 0.6),
        ("int8-full", Precision("int8", "int8"), 0.6),
        ("int8-weights", Precision("fp32", "int8-weights"), 0.9),
        ("int4-weights", Precision("fp32", "int4-weights"), 0.85),
        ("fp8", Precision("fp8", "fp8"), 0.6),
    ],
)
def test_variant_is_added_and_checked(
    bundle: Bundle, images: Images, precision: str, parts: Precision, largest_share: float
) -> None:
    stages: list[str] = []
    report = quantize_bundle(
        bundle.folder, precision, images, progress=lambda stage, *_: stages.append(stage)
    )
    assert stages[-1] == "check"
    variant = open_bundle(bundle.folder).variant(precision)
    assert variant.precision == parts
    assert variant.opset == bundle.variant("fp32").opset
    assert report.evaluation.size_bytes == report.bundle.variant_size_bytes(precision)
    assert _weights(report.bundle, precision) < largest_share * _weights(bundle, "fp32")
    assert report.evaluation.agreement.sequences == 3
    # biases of up to 0.9 keep the logits of the tiny model far apart, so rounding changes no token
    assert report.evaluation.agreement.token_share == 1.0


def _weights(bundle: Bundle, variant: str) -> int:
    home = Path(bundle.variant(variant).step.file).parent
    return (bundle.folder / home / "weights.bin").stat().st_size


def test_scales_are_stored_beside_the_graphs(bundle: Bundle, images: Images) -> None:
    report = quantize_bundle(bundle.folder, "int8", QuantizationInputs(images, method="percentile"))
    scales = read_scales(bundle.folder / "int8" / "scales.json")
    assert (scales.provenance.method, scales.provenance.samples) == ("percentile", 3)
    provenance = report.bundle.variant("int8").provenance
    assert provenance.endswith(
        f"from fp32, percentile over 3 samples {scales.provenance.samples_sha256[:12]}"
    )


def test_prefill_and_step_share_int8_weights(bundle: Bundle, images: Images) -> None:
    report = quantize_bundle(bundle.folder, "int8", images)
    graphs = [
        onnx.load(report.bundle.graph_path("int8", role), load_external_data=False).graph
        for role in (GraphRole.PREFILL, GraphRole.STEP)
    ]
    offsets = [
        {
            entry.value
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8
            for entry in tensor.external_data
            if entry.key == "offset"
        }
        for graph in graphs
    ]
    assert offsets[0] == offsets[1] != set()


def test_float16_graphs_have_no_float32_weights(bundle: Bundle) -> None:
    report = quantize_bundle(bundle.folder, "fp16")
    assert report.samples == 0
    assert report.evaluation.agreement.sequences == 1
    for role in report.bundle.graphs("fp16"):
        model = onnx.load(report.bundle.graph_path("fp16", role))
        onnx.checker.check_model(model, full_check=True)
        types = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.FLOAT not in types
    step = report.bundle.graph("fp16", GraphRole.STEP)
    dtypes = {spec.name: spec.dtype for spec in (*step.inputs, *step.outputs)}
    assert dtypes["self_key_0"] == dtypes["cross_value_0"] == "float16"
    assert dtypes["logits"] == "float"
    assert report.bundle.graph("fp16", GraphRole.ENCODER).inputs[0].dtype == "float"


class LoudReader(TinyReader):
    """Its features pass through numbers beyond float16, unless the picture is all zeros."""

    def encode(self, image: Tensor) -> Tensor:
        return super().encode(image) * 6e4 * 1e3 / 1e3 / 6e4


def test_the_example_shows_what_overflows_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    job = tiny_job(LoudReader().eval())
    example = {"image": torch.rand(1, 1, 8, 16)}
    run_export(replace(job, golden={}, example=example), tmp_path / "loud.bundle")
    report = quantize_bundle(tmp_path / "loud.bundle", "fp16")
    assert report.tensors_in_float32
    assert report.evaluation.stand_in == "the example of the export"
    assert "not checked on any real input, only on the example" in describe(report.evaluation)


def test_int8_needs_samples(bundle: Bundle) -> None:
    with pytest.raises(UsageError) as caught:
        quantize_bundle(bundle.folder, "int8")
    assert str(caught.value) == "int8 needs calibration samples; give --samples FOLDER, or --golden"


def test_wrong_requests(bundle: Bundle, images: Images) -> None:
    with pytest.raises(UsageError, match="unknown precision 'int3'"):
        quantize_bundle(bundle.folder, "int3")
    with pytest.raises(UsageError, match="unknown method 'magic'"):
        quantize_bundle(bundle.folder, "int8", QuantizationInputs(images, method="magic"))
    with pytest.raises(UsageError, match="would replace its own source"):
        quantize_bundle(bundle.folder, "fp16", name="fp32", force=True)
    with pytest.raises(InputError, match="has no variant 'int4'"):
        quantize_bundle(bundle.folder, "fp16", source="int4")


def test_quantized_source_is_refused(bundle: Bundle) -> None:
    quantize_bundle(bundle.folder, "fp16")
    with pytest.raises(
        UsageError, match=r"variant fp16 of .* is already quantized .* quantize fp32"
    ):
        quantize_bundle(bundle.folder, "fp16", name="second", source="fp16")


def test_existing_variant_needs_force(bundle: Bundle, images: Images) -> None:
    quantize_bundle(bundle.folder, "fp16")
    with pytest.raises(OutputExistsError, match="give --force"):
        quantize_bundle(bundle.folder, "fp16")
    report = quantize_bundle(bundle.folder, "fp16", images, force=True)
    assert report.evaluation.agreement.sequences == 3
    assert set(report.bundle.manifest.variants) == {"fp32", "fp16"}


def test_another_method_decodes_no_sample_again(
    bundle: Bundle, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    quantize_bundle(bundle.folder, "int8", images)
    with monkeypatch.context() as patch:
        patch.setattr(ObservedModel, "decode", lambda *_: pytest.fail("decoded again"))
        quantize_bundle(
            bundle.folder, "int8", QuantizationInputs(images, method="mse"), name="int8-mse"
        )
    (cache_file,) = (tmp_path / "cache" / "calibration").iterdir()
    cache_file.write_bytes(b"damaged")
    report = quantize_bundle(bundle.folder, "int8", images, name="again")
    scales = [read_scales(bundle.folder / name / SCALES_FILE) for name in ("int8", "again")]
    assert scales[0] == scales[1]
    assert report.samples == 3


def test_quantization_works_without_a_writable_cache(
    bundle: Bundle, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert quantize_bundle(bundle.folder, "int8", images).samples == 3


def test_failed_calibration_leaves_the_bundle_alone(bundle: Bundle, images: Images) -> None:
    before = files(bundle.folder)
    images[2]["image"][:] = np.inf
    with pytest.raises(CalibrationError, match="encoder/image holds NaN"):
        quantize_bundle(bundle.folder, "int8", images)
    assert files(bundle.folder) == before
    assert open_bundle(bundle.folder) == bundle


def test_variant_that_fails_its_check_is_not_added(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(recipe: object, graphs: Mapping[GraphRole, ir.Model], *_: object) -> None:
        for model in graphs.values():
            for value in model.graph.initializers.values():
                if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
                    array = np.full_like(value.const_value.numpy(), np.nan)
                    value.const_value = ir.tensor(array, name=value.name)

    before = files(bundle.folder)
    monkeypatch.setattr("hybrid_deploy.calibration.variants.float_model.apply_recipe", spoil)
    with pytest.raises(BackendError, match="not finite"):
        quantize_bundle(bundle.folder, "fp16")
    assert files(bundle.folder) == before
    assert open_bundle(bundle.folder) == bundle


def test_components_mix(bundle: Bundle, images: Images) -> None:
    data = QuantizationInputs(images)
    report = quantize_bundle(bundle.folder, None, data, encoder="int8", decoder="fp16")
    assert report.variant == "int8+fp16"
    encoder = report.bundle.graph("int8+fp16", GraphRole.ENCODER)
    assert {spec.dtype for spec in encoder.outputs} == {"float16"}, (
        "the memory has the decoder's type"
    )
    report = quantize_bundle(bundle.folder, "fp16", data, decoder="int4-weights", block_size=32)
    assert report.variant == "fp16+int4-weights"
    encoder = report.bundle.graph(report.variant, GraphRole.ENCODER)
    assert {spec.dtype for spec in encoder.outputs} == {"float"}


def test_scales_from_a_file_make_the_same_weights(
    bundle: Bundle, images: Images, tmp_path: Path
) -> None:
    quantize_bundle(bundle.folder, "int8", images)
    file = tmp_path / "scales.json"
    file.write_bytes((bundle.folder / "int8" / SCALES_FILE).read_bytes())
    report = quantize_bundle(bundle.folder, "int8", QuantizationInputs(scales=file), name="again")
    weights = [report.bundle.folder / name / "weights.bin" for name in ("int8", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(UsageError, match="scales come from a file or from samples"):
        quantize_bundle(
            bundle.folder, "int8", QuantizationInputs(images, scales=file), name="third"
        )


def test_a_target_refuses_what_it_lacks(bundle: Bundle, images: Images) -> None:
    with pytest.raises(UsageError, match=r"Jetson Orin .* has no fp8 for the encoder"):
        quantize_bundle(bundle.folder, "fp8", images, target="orin")
    assert quantize_bundle(bundle.folder, "int4-weights", images, target="orin").samples == 3

"""Small graphs built by hand, and one tiny exported bundle for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle

Build = Callable[[str, Mapping[str, NDArray[Any]]], ir.Model]
_HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'


@pytest.fixture
def build() -> Build:
    """Builds a graph from ONNX text and its constants."""

    def from_text(text: str, constants: Mapping[str, NDArray[Any]]) -> ir.Model:
        proto = onnx.parser.parse_model(_HEADER + text)
        for name, array in constants.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))

    return from_text


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float bundle of a tiny untrained reader, with two start tokens so that prefill runs."""
    import torch

    from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults, ImageInput, Vocabulary
    from hybrid_deploy.export.export_job import ExportJob, ModelSpec
    from hybrid_deploy.export.exporter import run_export
    from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
    from hybrid_deploy.export.reference.model import DigitReader
    from hybrid_deploy.export.reference.vocabulary import VOCABULARY

    torch.manual_seed(0)
    model = DigitReader("feature-map", d_model=32, heads=2, layers=1, d_feedforward=64).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases start at zero, and zero biases are optimized away
            torch.nn.init.uniform_(parameter, 0.1, 0.9)
    spec = ModelSpec(
        name="tiny",
        generation=GenerationDefaults((1, 3), end_tokens=(), pad_token=0, max_length=8),
        preprocess=ImageInput("image", "L", 32, None, 16, 32, 256, 0, 255, (1.0,), (0.5,)),
        vocabulary=Vocabulary(tuple(VOCABULARY), (0, 1, 2)),
        dynamic={"image": {3: DynamicAxis("width", DimRange(32, 64, 256))}},
    )
    path = tmp_path_factory.mktemp("exported") / "tiny.bundle"
    run_export(ExportJob(model, {"image": torch.randn(1, 1, 32, 64)}, spec), path)
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    """A copy of the float bundle that a test may change."""
    shutil.copytree(exported, tmp_path / "tiny.bundle")
    return open_bundle(tmp_path / "tiny.bundle")


@pytest.fixture
def images() -> list[dict[str, NDArray[np.float32]]]:
    """Encoder inputs: noise of three widths."""
    rng = np.random.default_rng(0)
    widths = (32, 48, 80)
    return [{"image": -2 * rng.random((1, 1, 32, w), dtype=np.float32)} for w in widths]

"""Encoder inputs out of the model's range: each has an error message of one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hybrid_deploy.bundle.field_types import ElementType
from hybrid_deploy.bundle.manifest import DimRange, GraphSpec, TensorSpec
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.session.input_checks import check_values, with_mask_types
from hybrid_deploy.runtime.session.session import Session, load_session


@pytest.fixture(scope="module")
def session(tiny_path: Path) -> Session:
    return load_session(tiny_path)


@pytest.mark.parametrize("width", [4, 68])
def test_sizes_out_of_range(session: Session, width: int) -> None:
    message = f"^input image has width {width}, the model was exported for 8 to 64; resize it"
    with pytest.raises(InputError, match=message):
        session.run_arrays({"image": np.zeros((1, 1, 8, width), np.float32)})


def test_a_size_that_is_no_multiple() -> None:
    graph = GraphSpec("", (TensorSpec("image", "float", ("batch", 1, 8, "width")),), ())
    dims = {"width": DimRange(8, 16, 64, 8)}
    check_values({"image": np.zeros((1, 1, 8, 24), np.float32)}, graph, dims)
    with pytest.raises(InputError) as caught:
        check_values({"image": np.zeros((1, 1, 8, 27), np.float32)}, graph, dims)
    assert str(caught.value) == (
        "input image has width 27, the model takes multiples of 8; pad it to 32"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite(session: Session, bad: float) -> None:
    image = np.zeros((2, 1, 8, 16), np.float32)
    image[1, 0, 3, 3] = bad
    with pytest.raises(InputError, match="input image holds NaN or infinity; check how"):
        session.run_arrays({"image": image})
    assert session.run_arrays({"image": np.zeros((2, 1, 8, 16), np.float32)})[0]


def test_masks_get_the_type_of_the_model() -> None:
    mask = np.array([[1, 0]])
    types: dict[ElementType, type] = {"bool": np.bool_, "float": np.float32, "int64": np.int64}
    for dtype, expected in types.items():
        graph = GraphSpec("", (TensorSpec("seen", dtype, ("batch", "width")),), ())
        inputs = with_mask_types({"seen": mask, "image": mask}, {"seen"}, graph)
        assert inputs["seen"].dtype == expected and inputs["seen"].tolist() == [[1, 0]]
        assert inputs["image"] is mask

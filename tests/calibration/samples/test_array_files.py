from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.calibration.samples.array_files import read_arrays
from hybrid_deploy.errors import InputError

ENCODER = GraphSpec(
    "fp32/encoder.onnx",
    (
        TensorSpec("image", "float", ("batch", 1, 32, "width")),
        TensorSpec("width", "int64", ("batch",)),
    ),
    (),
)
ENCODER_INPUTS = "; the encoder takes image: float batchx1x32xwidth, width: int64 batch"
IMAGE, WIDTH = np.zeros((2, 1, 32, 48), np.float32), np.array([40, 48])


def test_the_encoders_inputs_are_read_and_others_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, label=np.array([3]), width=WIDTH, image=IMAGE)
    arrays = read_arrays(path, ENCODER)
    assert list(arrays) == ["image", "width"]
    np.testing.assert_array_equal(arrays["width"], WIDTH)
    assert set(read_arrays(path, None)) == {"label", "image", "width"}


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"img": IMAGE}, "expected the inputs ['image', 'width'], got ['img']"),
        ({"image": IMAGE}, "expected the inputs ['image', 'width'], got ['image']"),
        (
            {"image": IMAGE[0], "width": WIDTH},
            "input image must be float batchx1x32xwidth, got float32 1x32x48",
        ),
        (
            {"image": IMAGE.astype(np.float64), "width": WIDTH},
            "input image must be float batchx1x32xwidth, got float64 2x1x32x48",
        ),
        ({"image": IMAGE[:1], "width": WIDTH}, "the inputs disagree on the batch size: [1, 2]"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], problem: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as caught:
        read_arrays(path, ENCODER)
    assert str(caught.value) == f"{path}: {problem}{ENCODER_INPUTS}"


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz does not exist"):
        read_arrays(path, ENCODER)
    np.savez(path, image=IMAGE, width=WIDTH)
    intact = path.read_bytes()
    for content in (b"", b"text", intact[:-40]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npz is not a \.npz file"):
            read_arrays(path, ENCODER)
    path.write_bytes(intact[:200] + b"x" * 200 + intact[400:])
    with pytest.raises(InputError, match=r"a\.npz is a damaged \.npz file: .*CRC"):
        read_arrays(path, ENCODER)
    np.savez(path, image=np.array([{}], object), width=WIDTH)
    with pytest.raises(InputError, match=r"a\.npz is a damaged \.npz file: it holds object"):
        read_arrays(path, ENCODER)
    with pytest.raises(InputError, match=r"is no file"):
        read_arrays(tmp_path, ENCODER)

import numpy as np
import pytest

from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.backends.tensor_checks import check_inputs


def test_an_array_for_a_type_that_numpy_lacks() -> None:
    spec = GraphSpec("encoder.onnx", (TensorSpec("image", "bfloat16", ("batch", 3)),), ())
    with pytest.raises(InputError, match=r"image is declared as bfloat16; arrays are given as "):
        check_inputs(spec, {"image": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_an_array_of_another_type(dtype: type[np.generic]) -> None:
    spec = GraphSpec("encoder.onnx", (TensorSpec("image", "float", ("batch", 3)),), ())
    with pytest.raises(InputError, match=r"image must be float batchx3, got \w+ 1x3"):
        check_inputs(spec, {"image": np.zeros((1, 3), dtype)})

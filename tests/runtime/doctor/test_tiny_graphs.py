from dataclasses import replace

import numpy as np
import onnx
import pytest

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.doctor.tiny_graphs import FLOAT, GRAPHS
from tests.runtime.doctor.write_tiny_graphs import model


@pytest.mark.parametrize("name", GRAPHS)
def test_files_equal_the_models_of_the_script(name: str) -> None:
    assert onnx.load(GRAPHS[name].file) == model(name)


def test_wrong_numbers_are_refused() -> None:
    (expected,) = FLOAT.expected.values()
    FLOAT.check({"result": expected})
    with pytest.raises(BackendError, match=r"^wrong numbers: result is off by 0\.5$"):
        FLOAT.check({"result": expected + np.float32(0.5)})
    graph = replace(FLOAT, expected={"result": np.zeros(1)})
    with pytest.raises(BackendError, match="off by nan"):
        graph.check({"result": np.full(1, np.nan)})

"""`hybrid-deploy inspect`: the sizes that it states."""

from __future__ import annotations

from typing import get_args

import pytest

from hybrid_deploy.bundle.field_types import ElementType
from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.cli.commands.inspect import cache_bytes
from hybrid_deploy.contract import next_cache


@pytest.mark.parametrize("dtype", get_args(ElementType))
def test_a_cache_may_have_any_element_type(dtype: ElementType) -> None:
    name = "self_key_0"
    shape = ("batch", 3, 5)
    step = GraphSpec(
        file="fp32/step.onnx",
        inputs=(TensorSpec(name=name, dtype=dtype, shape=shape),),
        outputs=(TensorSpec(name=next_cache(name), dtype=dtype, shape=shape),),
    )
    expected = {"float": 60, "double": 120, "bool": 15, "int4": 8, "uint64": 120, "float16": 30}
    size = cache_bytes(step)
    assert size == expected.get(dtype, size) > 0

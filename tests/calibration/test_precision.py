import pytest

from hybrid_deploy.calibration.precision import PRECISIONS, recipe_for
from hybrid_deploy.errors import UsageError


def test_unknown_precision_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        recipe_for("int3")
    assert str(caught.value) == (
        "unknown precision 'int3'; choose one of: fp16, bf16, int8, int8-cpu"
    )


def test_only_int8_encoders_need_scales() -> None:
    needs = {name: recipe_for(name).needs_scales for name in PRECISIONS}
    assert needs == {"fp16": False, "bf16": False, "int8": True, "int8-cpu": True}

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation import token_agreement
from hybrid_deploy.calibration.evaluation.token_agreement import (
    Agreement,
    check_prefill,
    compare_tokens,
)
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from tests.fakes.edited_graph import edit_graph


def check(bundle: Bundle, images: list[Inputs], variant: str = "fp32") -> None:
    backend = load_backend("onnxruntime", bundle, variant, BackendOptions(threads=1))
    check_prefill(bundle, backend, images[0])


def scale(array: NDArray[Any]) -> None:
    array *= 1.5


def spoil(array: NDArray[Any]) -> None:
    array[...] = np.nan


def test_tokens_are_compared_index_by_index() -> None:
    pairs = [((1, 2, 3), (1, 2, 3)), ((1, 2, 3, 4), (1, 5, 3))]
    agreement = compare_tokens(pairs)
    assert agreement == Agreement(sequences=2, same_sequences=1, tokens=7, same_tokens=5)
    assert agreement.token_share == 5 / 7


def test_nothing_to_compare() -> None:
    assert compare_tokens([]).token_share == 1.0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-cpu", "int4-cpu"])
def test_prefill_agrees_with_steps(bundle: Bundle, images: list[Inputs], precision: str) -> None:
    if precision != "fp32":
        bundle = quantize_bundle(bundle.folder, precision, images).bundle
    check(bundle, images, precision)


def test_prefill_of_the_float_variant_agrees_up_to_rounding(
    bundle: Bundle, images: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_agreement, "LARGEST_PREFILL_SHARE", 1e-5)
    check(bundle, images)


@pytest.mark.parametrize("role", [GraphRole.PREFILL, GraphRole.BEAM_STEP])
def test_a_change_of_one_graph_is_refused(
    bundle: Bundle, images: list[Inputs], role: GraphRole
) -> None:
    # the beam step is what this backend runs as its step
    edit_graph(bundle, role, scale, "head.weight_transposed")
    with pytest.raises(BackendError, match=r"the prefill graph after 5 tokens differ from .*steps"):
        check(bundle, images)


def test_caches_that_prefill_writes_wrong_are_refused(
    bundle: Bundle, images: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding

    prefill = OnnxRuntimeDecoding.prefill

    def forgetting(decoding: OnnxRuntimeDecoding, *arguments: Any) -> Any:
        logits = prefill(decoding, *arguments).copy()
        for value in decoding._caches.values():
            value.update_inplace(np.ascontiguousarray(value.numpy()[..., ::-1] * 9))
        return logits

    monkeypatch.setattr(OnnxRuntimeDecoding, "prefill", forgetting)
    with pytest.raises(BackendError, match="the step graph after a prefill of 5 tokens differ"):
        check(bundle, images)


def test_logits_of_prefill_that_are_not_finite_are_refused(
    bundle: Bundle, images: list[Inputs]
) -> None:
    edit_graph(bundle, GraphRole.PREFILL, spoil, "head.weight_transposed")
    with pytest.raises(BackendError, match="the prefill graph after 5 tokens are not finite"):
        check(bundle, images)

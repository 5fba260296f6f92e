"""The second moments of the inputs of a decoder's weights, observed in the generation loop."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.observation import moments as observation
from hybrid_deploy.calibration.observation.collect import observe_samples
from hybrid_deploy.calibration.observation.moments import observe_moments
from hybrid_deploy.calibration.qdq.layers import weight_key
from hybrid_deploy.calibration.qdq.linear_operators import linear_operators
from hybrid_deploy.calibration.samples.samples import samples_of
from hybrid_deploy.contract import GraphRole

Images = list[dict[str, NDArray[np.float32]]]


def test_every_weight_of_the_decoder_has_the_moments_of_its_inputs(
    bundle: Bundle, images: Images
) -> None:
    graphs, samples = prepared_graphs(bundle, "fp32"), samples_of(bundle, images)
    done: list[tuple[str, int, int]] = []
    moments = observe_moments(bundle, graphs, samples, lambda *p: done.append(p))
    assert done == [("moments", count, 3) for count in (1, 2, 3)]
    scales = observe_samples(bundle, "fp32", graphs, samples).scales("minmax")
    steps, prefills = (scales.channels_of(r) for r in (GraphRole.STEP, GraphRole.PREFILL))
    products = {
        role: {
            weight_key(op): str(op.activation.name) for op in linear_operators(graphs[role].graph)
        }
        for role in (GraphRole.STEP, GraphRole.PREFILL)
    }
    assert moments.keys() == products[GraphRole.STEP].keys() and len(moments) > 4
    for key, of_weight in moments.items():
        largest = np.maximum(
            steps[products[GraphRole.STEP][key]].largest,
            prefills[products[GraphRole.PREFILL][key]].largest,
        ).astype(np.float64)
        squares = np.diagonal(of_weight.mean)
        assert (
            (squares <= largest**2 * 1.001) & (squares >= largest**2 / of_weight.rows * 0.999)
        ).all()
        assert (np.linalg.eigvalsh(of_weight.mean) > -1e-6).all()


def test_moments_that_do_not_fit_at_once_take_several_runs(
    bundle: Bundle, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, samples = prepared_graphs(bundle, "fp32"), samples_of(bundle, images)
    at_once = observe_moments(bundle, graphs, samples)
    monkeypatch.setattr(observation, "MOMENT_BYTES", 1)
    done: list[int] = []
    one_by_one = observe_moments(
        bundle, graphs, samples, lambda _, count, total: done.append(total)
    )
    assert set(done) == {3 * len(done) // 3} and len(done) > 6
    assert one_by_one.keys() == at_once.keys()
    for key, moments in at_once.items():
        np.testing.assert_allclose(one_by_one[key].mean, moments.mean)

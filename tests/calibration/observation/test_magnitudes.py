from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.observation.collect import observe_samples
from hybrid_deploy.calibration.observation.magnitudes import Magnitude, observe_magnitudes
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.calibration.samples.samples import samples_of
from hybrid_deploy.contract import GraphRole
from tests.models.zoo.cases import find
from tests.models.zoo.check import export

Images = list[dict[str, NDArray[np.float32]]]


def test_most_tensors_of_every_graph_have_a_magnitude(bundle: Bundle, images: Images) -> None:
    graphs, samples = prepared_graphs(bundle, "fp32"), samples_of(bundle, images)
    done: list[tuple[str, int, int]] = []
    magnitudes_by_graph = observe_magnitudes(bundle, graphs, samples, lambda *p: done.append(p))
    assert done == [("overflow", count, 3) for count in range(4)]
    assert list(magnitudes_by_graph) == [GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP]
    scales = observe_samples(bundle, "fp32", graphs, samples).scales("minmax")
    for role, magnitudes in magnitudes_by_graph.items():
        computed = {value.name for node in graphs[role].graph for value in node.outputs}
        assert len(magnitudes) > len(computed) / 2
        assert magnitudes.keys() <= computed
        for name, range_ in scales.of(role).items():
            if name in computed:
                # here every tensor is an output, which prevents fusions: they round differently
                expected = max(-range_.low, range_.high)
                assert magnitudes[name] == pytest.approx(expected, rel=1e-4)


def test_a_cache_of_token_ids_begins_empty_in_its_own_type(tmp_path: Path) -> None:
    """The decoder embeds the token before each one, so its step keeps ids, int64, in a cache."""
    case = find("previous-token")
    bundle = export(case, case.model(), tmp_path / "m.bundle")
    ids = [t.name for t in bundle.graph("fp32", GraphRole.STEP).inputs if t.dtype == "int64"]
    assert len(ids) > 2, "token, position and a cache"
    quantize_bundle(bundle.folder, "fp16")


@pytest.mark.parametrize(
    ("numbers", "largest"),
    [([1, -3, 2], 3), ([-np.inf, 2, -1], 2), ([np.nan, -7], 7), ([np.inf], 0), ([], 0)],
)
def test_only_finite_values_count(numbers: list[float], largest: float) -> None:
    magnitude = Magnitude()
    magnitude.observe(np.array(numbers, np.float32), 0)
    assert magnitude.largest == largest
    magnitude.observe(np.array([0.5], np.float32), 1)
    assert magnitude.largest == max(largest, 0.5)

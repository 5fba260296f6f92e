import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.observation.collect import observe_samples
from hybrid_deploy.calibration.qdq.linear_operators import linear_operators
from hybrid_deploy.calibration.samples.samples import open_samples, samples_of
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.onnx_graphs.files import load_graphs
from hybrid_deploy.runtime.session.session import load_session
from tests.closeness import assert_close_in_float32

Images = list[dict[str, NDArray[np.float32]]]


def test_every_graph_and_every_step_is_observed(bundle: Bundle, images: Images) -> None:
    graphs = load_graphs(bundle, "fp32")
    before = {role: len(model.graph.outputs) for role, model in graphs.items()}
    done: list[tuple[str, int, int]] = []
    samples = open_samples(images, bundle.manifest.preprocess)
    scales = observe_samples(
        bundle, "fp32", graphs, samples, progress=lambda *p: done.append(p)
    ).scales("minmax")
    assert done == [("calibrate", count, 3) for count in range(4)]
    # at most 8 tokens, 2 of them the prompt: one prefill and 5 steps for each sample
    assert scales.provenance.steps == 3 * 6
    assert set(scales.ranges) == {"encoder", "prefill", "step"}
    image = np.concatenate([sample["image"].ravel() for sample in images])
    assert scales.of(GraphRole.ENCODER)["image"] == Range(float(image.min()), float(image.max()))
    assert {role: len(model.graph.outputs) for role, model in graphs.items()} == before


def test_step_ranges_are_those_of_the_real_loop(bundle: Bundle, images: Images) -> None:
    """The input of a step's first matrix product is recomputed: embedding plus position."""
    session = load_session(bundle.folder)
    graphs = load_graphs(bundle, "fp32")
    step = graphs[GraphRole.STEP].graph
    products = [node for node in step if node.op_type == "MatMul"]
    first = products[0].inputs[0]
    assert first is not None
    assert first.name is not None
    samples = open_samples(images, bundle.manifest.preprocess)
    observed = (
        observe_samples(bundle, "fp32", graphs, samples)
        .scales("minmax")
        .of(GraphRole.STEP)[first.name]
    )
    results = [session.run_arrays(sample)[0][0] for sample in images]
    rows = _embedded(step, [token for r in results for token in r.tokens[:-1]])
    positions = _positions(step)
    expected = rows + np.tile(positions[2:7], (len(images), 1))
    assert_close_in_float32([observed.low, observed.high], [expected.min(), expected.max()])


def _embedded(step: ir.Graph, tokens: list[int]) -> NDArray[np.float32]:
    table = next(n for n in step if n.op_type == "Gather" and n.inputs[1] is step.inputs[0])
    factor = next(n for n in step if n.op_type == "Mul").inputs[1]
    assert table.inputs[0] is not None
    assert table.inputs[0].const_value is not None
    assert factor is not None
    assert factor.const_value is not None
    table_rows = table.inputs[0].const_value.numpy()[tokens]
    rows: NDArray[np.float32] = table_rows * factor.const_value.numpy()
    return rows


def _positions(step: ir.Graph) -> NDArray[np.float32]:
    table = next(n for n in step if n.op_type == "Gather" and n.inputs[1] is step.inputs[1])
    assert table.inputs[0] is not None
    assert table.inputs[0].const_value is not None
    positions: NDArray[np.float32] = table.inputs[0].const_value.numpy()
    return positions.reshape(positions.shape[0], -1)


def test_nan_in_an_input_is_refused_with_its_name(bundle: Bundle, images: Images) -> None:
    images[1]["image"][0, 0, 3, 3] = np.nan
    samples = open_samples(images, bundle.manifest.preprocess)
    with pytest.raises(CalibrationError, match=r"^encoder/image holds NaN or infinity"):
        observe_samples(bundle, "fp32", load_graphs(bundle, "fp32"), samples)


def test_nan_names_the_layer_and_the_sample(bundle: Bundle, images: Images) -> None:
    graphs = prepared_graphs(bundle, "fp32")
    step = graphs[GraphRole.STEP].graph
    norm = next(node for node in step if node.op_type == "LayerNormalization")
    scale = norm.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    scale_with_infinity = scale.const_value.numpy().copy()
    scale_with_infinity[0] = np.inf
    scale.const_value = ir.tensor(scale_with_infinity, name=scale.name)
    with pytest.raises(CalibrationError) as caught:
        observe_samples(bundle, "fp32", graphs, samples_of(bundle, images[:1]))
    assert str(caught.value) == (
        f"step/{norm.outputs[0].name} (LayerNormalization of decoder.layers.0.norm1) holds NaN or "
        "infinity on these samples; check the samples, then the model's weights (sample 0)"
    )


def test_channels_of_inputs_of_matrix_products(bundle: Bundle, images: Images) -> None:
    graphs = prepared_graphs(bundle, "fp32")
    scales = observe_samples(bundle, "fp32", graphs, samples_of(bundle, images)).scales("minmax")
    for role, model in graphs.items():
        products = [
            linear for linear in linear_operators(model.graph) if linear.node.op_type != "Conv"
        ]
        channels_by_tensor = scales.channels_of(role)
        assert channels_by_tensor.keys() == {linear.activation.name for linear in products}
        for linear in products:
            channels = channels_by_tensor[str(linear.activation.name)]
            weight = linear.weight.const_value
            assert weight is not None
            assert channels.largest.shape == (weight.shape[1 - linear.channel_axis],)
            range_ = scales.of(role)[str(linear.activation.name)]
            assert float(channels.largest.max()) == max(-range_.low, range_.high)
            # the mean is rounded to its unit of 2^-24
            assert (channels.mean <= channels.largest + 2**-24).all()


def test_sample_of_the_wrong_shape_is_refused(bundle: Bundle) -> None:
    samples = open_samples(
        [{"image": np.zeros((1, 3, 32, 32), np.float32)}], bundle.manifest.preprocess
    )
    with pytest.raises(InputError, match="input image must be float"):
        observe_samples(bundle, "fp32", load_graphs(bundle, "fp32"), samples)


def test_interrupt_passes_through(bundle: Bundle, images: Images) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    samples = open_samples(images, bundle.manifest.preprocess)
    with pytest.raises(KeyboardInterrupt):
        observe_samples(bundle, "fp32", load_graphs(bundle, "fp32"), samples, progress=interrupt)

import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.tensorrt_builder.optimization_profile import (
    fix_single_sizes,
    narrow_dims,
    optimization_profile_of,
)
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import load_tensorrt
from hybrid_deploy.target import Flavour


def test_one_size_means_three_equal_sizes(tiny_bundle: Bundle) -> None:
    one_size, three_sizes = (
        narrow_dims(tiny_bundle, [text]) for text in ("batch=2", "batch=2:2:2")
    )
    assert one_size.manifest.dims["batch"] == DimRange(2, 2, 2)
    assert one_size.manifest == three_sizes.manifest


@pytest.mark.parametrize("text", ["batch=", "batch=1:2", "batch=0", "batch=2:1:4", "batch=a"])
def test_text_that_is_no_range_is_refused(tiny_bundle: Bundle, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        narrow_dims(tiny_bundle, [text])
    assert str(caught.value) == (
        f"--profile {text}: expected NAME=MIN:TYPICAL:MAX with MIN <= TYPICAL <= MAX, such as "
        "batch=1:4:8, or one size, such as batch=1"
    )


@pytest.mark.trt
@pytest.mark.parametrize("role", [GraphRole.ENCODER, GraphRole.PREFILL, GraphRole.STEP])
def test_network_of_single_sizes_is_static(tiny_bundle: Bundle, role: GraphRole) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    vendor = load_tensorrt(Flavour.RTX)
    builder = vendor.module.Builder(vendor.log)
    strongly_typed = vendor.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    network = builder.create_network(1 << int(strongly_typed))
    parser = vendor.module.OnnxParser(network, vendor.log)
    assert parser.parse_from_file(str(tiny_bundle.graph_path("fp32", role)))
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert any(-1 in tuple(tensor.shape) for tensor in outputs)

    fixed = narrow_dims(tiny_bundle, ["batch=1", "width=24", "memory=6", "length=4"])
    shapes = optimization_profile_of(fixed, fixed.graph("fp32", role), role.value)
    assert fix_single_sizes(network, shapes) == {}
    assert not any(-1 in tuple(tensor.shape) for tensor in outputs)


@pytest.mark.trt
def test_varying_dimension_keeps_its_range(tiny_bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    vendor = load_tensorrt(Flavour.RTX)
    builder = vendor.module.Builder(vendor.log)
    strongly_typed = vendor.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    network = builder.create_network(1 << int(strongly_typed))
    parser = vendor.module.OnnxParser(network, vendor.log)
    assert parser.parse_from_file(str(tiny_bundle.graph_path("fp32", GraphRole.STEP)))
    bundle = narrow_dims(tiny_bundle, ["batch=1"])
    profile = optimization_profile_of(bundle, bundle.graph("fp32", GraphRole.STEP), "step")
    varying = fix_single_sizes(network, profile)
    assert varying.keys() == {"cross_key_0", "cross_value_0"}
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    assert (shapes["token"], shapes["cross_key_0"]) == ((1,), (1, 2, -1, 8))

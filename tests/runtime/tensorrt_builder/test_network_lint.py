"""Inputs that TensorRT's parser drops without a message, in real parses of a small decoder step."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.tensorrt_builder.network_lint import attention_layers, lint_network
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import load_tensorrt
from hybrid_deploy.target import Flavour

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
    ),
]

Parse = Callable[[str], object]

STEP = """
<ir_version: 10, opset_import: ["" : 24]>
step (int64[batch] token, int64[batch] position, float[batch,2,8,4] self_key_0,
      float[batch,2,memory,4] cross_key_0 INPUTS)
  => (float[batch,2,1,4] logits, float[batch,2,8,4] self_key_0_next)
<float[1,8] embedding = {1, 2, 3, 4, 5, 6, 7, 8}, int64[4] heads = {0, 2, 1, 4},
 int64[1,1,1,8] key_index = {0, 1, 2, 3, 4, 5, 6, 7}, int64[4] column = {0, 1, 1, 1},
 int64 one = {1}>
{
  row = Gather (embedding, token)
  new = Reshape (row, heads)
  self_key_0_next = TensorScatter <axis = -2, mode = "linear"> (self_key_0, new, position)
  last_key = Reshape (position, column)
  mask = LessOrEqual (key_index, last_key)
  length = Add (position, one)
  own = Attention SELF
  logits = Attention CROSS
}
"""

NO_MASK = (
    "fp32/step: self-attention Attention_own_AttentionInput has no mask in TensorRT, so it would "
    "read cache rows that are not written yet; export it with an explicit bool mask (not "
    "nonpad_kv_seqlen, not is_causal)"
)


def step(
    own: str = "(new, self_key_0_next, self_key_0_next, mask)",
    cross: str = "(own, cross_key_0, cross_key_0)",
    inputs: str = "",
) -> str:
    return STEP.replace("SELF", own).replace("CROSS", cross).replace("INPUTS", inputs)


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    vendor = load_tensorrt(Flavour.RTX)
    alive = []  # a network reads weights that its parser and builder own

    def parse_text(text: str) -> object:
        path = tmp_path / "graph.onnx"
        model = onnx.parser.parse_model(text)
        for node in model.graph.node:
            node.name = f"{node.op_type}_{node.output[0]}"
        onnx.save(model, path)
        builder = vendor.module.Builder(vendor.log)
        strongly_typed = vendor.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        network = builder.create_network(1 << int(strongly_typed))
        parser = vendor.module.OnnxParser(network, vendor.log)
        alive.append((builder, network, parser))
        assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
        return network

    return parse_text


def masked(network: object) -> list[bool]:
    """Returns whether each attention layer of a network has a mask."""
    return [
        layer.num_inputs > 3 and layer.get_input(3) is not None
        for layer in attention_layers(network)
    ]


def refusal(network: object) -> str:
    with pytest.raises(BuildError) as caught:
        lint_network(network, "fp32/step")
    return str(caught.value)


def test_masked_self_attention_and_unmasked_cross_attention_pass(parse: Parse) -> None:
    network = parse(step())
    lint_network(network, "fp32/step")
    assert masked(network) == [True, False]


def test_masked_cross_attention_passes(parse: Parse) -> None:
    cross = "(own, cross_key_0, cross_key_0, memory_mask)"
    network = parse(step(cross=cross, inputs=", bool[batch,1,1,memory] memory_mask"))
    lint_network(network, "fp32/step")
    assert masked(network) == [True, True]


def test_encoder_attention_needs_no_mask(parse: Parse) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 24]>
    encoder (float[batch,2,width,4] image) => (float[batch,2,width,4] cross_key_0)
    { cross_key_0 = Attention (image, image, image) }
    """
    network = parse(text)
    lint_network(network, "fp32/encoder")
    assert masked(network) == [False]


@pytest.mark.parametrize(
    "own",
    [
        "(new, self_key_0_next, self_key_0_next)",
        "(new, self_key_0_next, self_key_0_next, , , , length)",
        "<is_causal = 1> (new, self_key_0_next, self_key_0_next)",
    ],
    ids=["no mask", "nonpad_kv_seqlen", "is_causal"],
)
def test_unmasked_self_attention_is_refused(parse: Parse, own: str) -> None:
    assert refusal(parse(step(own))) == NO_MASK


def test_unmasked_attention_over_tokens_without_a_cache_is_refused(parse: Parse) -> None:
    assert refusal(parse(step("(new, new, new)"))) == NO_MASK


def test_memory_length_that_the_parser_ignores_is_refused(parse: Parse) -> None:
    cross = "(own, cross_key_0, cross_key_0, , , , memory_length)"
    network = parse(step(cross=cross, inputs=", int64[batch] memory_length"))
    assert refusal(network) == (
        "fp32/step: no output depends on memory_length after TensorRT's parser read it; the graph "
        "never used it, or the node that takes it uses an input that TensorRT ignores"
    )


def test_ignored_length_behind_another_layer_is_refused(parse: Parse) -> None:
    text = step(
        cross="(own, cross_key_0, cross_key_0, , , , padded)",
        inputs=", int64[batch] memory_length",
    ).replace("length = Add (position, one)", "padded = Add (memory_length, one)")
    assert "no output depends on memory_length" in refusal(parse(text))


def test_input_that_the_graph_never_used_is_refused(parse: Parse) -> None:
    assert "no output depends on last after" in refusal(parse(step(inputs=", int64[batch] last")))


def test_mask_that_no_layer_reads_is_refused(parse: Parse) -> None:
    text = step().replace("length = Add (position, one)", "lost = LessOrEqual (position, one)")
    assert refusal(parse(text)).startswith("fp32/step: TensorRT computes the mask lost (")

import pytest

from hybrid_deploy.device_support import DEVICES, check_precision, device_of, tensorrt_refusal
from hybrid_deploy.errors import UsageError


def test_message_for_fp8_on_orin() -> None:
    with pytest.raises(UsageError) as caught:
        check_precision(device_of("orin"), "fp8", "fp8")
    assert str(caught.value) == (
        "Jetson Orin (sm_87) has no fp8 for the encoder: floats of 8 bits begin with Ada (sm_89) "
        "(orin knows: bf16, fp16, fp32, int4-weights, int8, int8-weights)"
    )


@pytest.mark.parametrize(
    ("device", "encoder", "decoder", "reason"),
    [
        ("rtx:sm_75", "fp16", "int4-weights", "weights of 4 bits begin with Ampere"),
        ("rtx:sm_75", "bf16", "bf16", "bfloat16 begins with Ampere"),
        ("thor", "int8-cpu", "int8-weights", "unsigned activations, which TensorRT refuses"),
        ("orin", "int8", "int8-cpu", "no int8-cpu for the decoder: .*; take int8-weights"),
        ("rtx:sm_86", "fp16", "int4-cpu", "no int4-cpu for the decoder: .*; take int4-weights"),
        ("rtx:any", "fp32-cpu", "fp16", "no fp32-cpu for the encoder: .*; take fp16"),
        ("rtx:sm_75", "fp16", "fp32-cpu", "operators of ONNX Runtime's CPU, which TensorRT"),
        ("cpu", "int8", "int8-weights", "slower than fp32 on a CPU; take int8-cpu"),
        ("cpu", "bf16", "bf16", "no kernels for bfloat16"),
        ("rtx:any", "fp8", "fp8", "begin with Ada"),
    ],
)
def test_precision_that_a_device_lacks_is_refused(
    device: str, encoder: str, decoder: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        check_precision(device_of(device), encoder, decoder)


@pytest.mark.parametrize(
    ("device", "encoder", "decoder"),
    [
        ("orin", "int8", "int4-weights"),
        ("thor", "fp8", "fp8"),
        ("rtx:sm_120", "fp8", "fp8"),
        ("cpu", "int8-cpu", "int4-weights"),
        ("cpu", "int8-cpu", "int4-cpu"),
        ("cpu", "fp32-cpu", "int8-cpu"),
        ("cpu", "fp32-cpu", "fp32-cpu"),
    ],
)
def test_precision_that_a_device_has_is_accepted(device: str, encoder: str, decoder: str) -> None:
    check_precision(device_of(device), encoder, decoder)
    assert device_of(device).refusal(encoder, "encoder") is None
    assert device_of(device).refusal(decoder, "decoder") is None


def test_turing_needs_float16_for_what_is_not_quantized() -> None:
    device = device_of("rtx:sm_75")
    with pytest.raises(
        UsageError, match=r"no fp32 for the encoder: .* quantize with --floats fp16"
    ):
        check_precision(device, "int8", "int8")
    check_precision(device, "int8", "int8", floats="fp16")
    check_precision(device, "fp16", "fp16")


@pytest.mark.parametrize(
    ("encoder", "decoder", "reason"),
    [
        ("fp16", "int4-weights", None),
        ("fp8", "fp8", None),
        (
            "int8-cpu", "int8-cpu",
            "its encoder is int8-cpu: it has unsigned activations, which TensorRT refuses; "
            "take int8",
        ),
        (
            "fp32", "fp32-cpu",
            "its decoder is fp32-cpu: it has operators of ONNX Runtime's CPU, which TensorRT "
            "refuses; take fp16",
        ),
    ],
)  # fmt: skip
def test_tensorrt_refuses_forms_for_a_cpu(encoder: str, decoder: str, reason: str | None) -> None:
    assert tensorrt_refusal(encoder, decoder) == reason


def test_unknown_device_lists_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="unknown target 'nano'; choose one of: cpu, orin, thor"):
        device_of("nano")
    assert set(DEVICES) >= {"cpu", "orin", "thor", "rtx:sm_86", "rtx:any"}

"""The precisions that each kind of device computes in; others are refused before any work is done.

A form is the precision of one component, encoder or decoder, as in `Precision` of a manifest.

Sources: the support matrices of TensorRT 10 and TensorRT-RTX 1 by compute capability, builds with
TensorRT-RTX 1.7, and the kernels of ONNX Runtime 1.32 on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_deploy.errors import UsageError
from hybrid_deploy.target import TARGETS

_TURING = frozenset({"fp16", "int8", "int8-weights"})
_AMPERE = _TURING | {"fp32", "bf16", "int4-weights"}
_ADA = _AMPERE | {"fp8"}
_PORTABLE = frozenset({"fp32", "int8", "int8-weights", "int4-weights"})
_CPU_ONLY = frozenset({"fp32-cpu", "int8-cpu", "int4-cpu"})
_CPU = _PORTABLE | _CPU_ONLY
_OWN_OPERATORS = "it has operators of ONNX Runtime's CPU, which TensorRT refuses; take"

_REASONS = {
    "fp32": "TensorRT has no float32 products before Ampere (sm_80); quantize with --floats fp16",
    "bf16": "bfloat16 begins with Ampere (sm_80)",
    "fp8": "floats of 8 bits begin with Ada (sm_89)",
    "int4-weights": "weights of 4 bits begin with Ampere (sm_80)",
    "int8-cpu": "it has unsigned activations, which TensorRT refuses; take int8",
    "fp32-cpu": f"{_OWN_OPERATORS} fp16",
    "int4-cpu": f"{_OWN_OPERATORS} int4-weights",
}
_DECODER_REASONS = {"int8-cpu": f"{_OWN_OPERATORS} int8-weights"}
_CPU_REASONS = {
    "fp16": "ONNX Runtime's CPU kernels compute it in float32, slower than fp32 itself",
    "bf16": "ONNX Runtime's CPU has no kernels for bfloat16",
    "fp8": "ONNX Runtime's CPU only emulates floats of 8 bits",
}
_CPU_SLOW = {"int8": "its convolutions are slower than fp32 on a CPU; take int8-cpu"}


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        name: name of the device on the command line.
        title: description of the device in messages.
        forms: forms of a component that the device computes in.
    """

    name: str
    title: str
    forms: frozenset[str]

    def refusal(self, form: str, component: str) -> str | None:
        """Returns why the device refuses a component in a form; None if it computes it.

        Args:
            form: precision of the component, such as `int8`.
            component: `encoder` or `decoder`.
        """
        if component == "encoder" and self.name == "cpu" and form in _CPU_SLOW:
            return _CPU_SLOW[form]
        if form in self.forms:
            return None
        reasons = _CPU_REASONS if self.name == "cpu" else _REASONS
        if component == "decoder" and form in _DECODER_REASONS:
            reasons = _DECODER_REASONS
        return reasons.get(form, "it has no kernels for it")


def _capability_forms(capability: str) -> frozenset[str]:
    version = int(capability)
    return _ADA if version >= 89 else _AMPERE if version >= 80 else _TURING


def _devices() -> dict[str, Device]:
    devices = [
        Device("cpu", "a CPU with ONNX Runtime", _CPU),
        Device("orin", "Jetson Orin (sm_87)", _AMPERE),
        Device("thor", "Jetson Thor (sm_110)", _ADA),
    ]
    for name, target in TARGETS.items():
        if target.capability is not None:
            forms = _capability_forms(target.capability)
            devices.append(Device(name, f"a GPU of compute capability {target.capability}", forms))
    devices.append(Device("rtx:any", "any GPU from Ampere on", _AMPERE))
    return {device.name: device for device in devices}


DEVICES = _devices()
"""Every device, by its name."""


def device_of(name: str) -> Device:
    """Returns the device of that name.

    Raises:
        UsageError: no device has that name; the message lists the valid names.
    """
    device = DEVICES.get(name.strip().lower())
    if device is None:
        raise UsageError(f"unknown target {name!r}; choose one of: {', '.join(DEVICES)}")
    return device


def check_precision(device: Device, encoder: str, decoder: str, floats: str = "fp32") -> None:
    """Refuses a precision that a device does not compute in.

    Args:
        device: device that the variant is for.
        encoder: form of the encoder, as in a manifest.
        decoder: form of the decoder, as in a manifest.
        floats: precision of the layers that are not quantized, `fp32` or `fp16`.

    Raises:
        UsageError: the device refuses the form or the floats of a component; the message has the
            reason, and lists the forms of the device.
    """
    for component, form in (("encoder", encoder), ("decoder", decoder)):
        unquantized = "fp16" if form in ("fp16", "bf16") else floats
        for needed in (form, unquantized):
            reason = device.refusal(needed, component)
            if reason is not None:
                raise UsageError(
                    f"{device.title} has no {needed} for the {component}: {reason} "
                    f"({device.name} knows: {', '.join(sorted(device.forms))})"
                )


def tensorrt_refusal(encoder: str, decoder: str) -> str | None:
    """Returns why TensorRT cannot build a variant for any GPU; None if its forms do not prevent it.

    Args:
        encoder: form of the encoder, as in a manifest.
        decoder: form of the decoder, as in a manifest.
    """
    for component, form in (("encoder", encoder), ("decoder", decoder)):
        if form in _CPU_ONLY:
            reason = DEVICES["rtx:any"].refusal(form, component)
            return f"its {component} is {form}: {reason}"
    return None

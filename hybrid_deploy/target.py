"""The targets that engines are built for: a GPU, and the TensorRT product that builds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hybrid_deploy.errors import UsageError

_RTX_CAPABILITIES = ("75", "80", "86", "89", "120", "121")
_ANY = "any"
_LOCAL = "local"


class Flavour(str, Enum):
    """One of the two TensorRT products; they share one API and one ONNX parser."""

    RTX = "rtx"
    TENSORRT = "tensorrt"

    @property
    def product(self) -> str:
        """Name of the product as NVIDIA writes it."""
        return "TensorRT-RTX" if self is Flavour.RTX else "TensorRT"


@dataclass(frozen=True)
class Target:
    """A kind of GPU to build engines for, and the product to build them with.

    Attributes:
        flavour: TensorRT product that builds; None takes the one that is installed.
        device: a compute capability such as `sm_86`; `any` for every GPU from Ampere on; or
            `local` for the GPU of this machine.
    """

    flavour: Flavour | None
    device: str

    def __str__(self) -> str:
        return self.device if self.flavour is None else f"{self.flavour.value}:{self.device}"

    @property
    def capability(self) -> str | None:
        """Compute capability without its dot, such as `86`; None for `any` and `local`."""
        return self.device.removeprefix("sm_") if self.device.startswith("sm_") else None

    @property
    def is_local(self) -> bool:
        """Whether engines are built for the GPU of this machine, which then must be present."""
        return self.device == _LOCAL


def _named_targets() -> dict[str, Target]:
    devices = [*(f"sm_{capability}" for capability in _RTX_CAPABILITIES), _ANY]
    targets = [*(Target(Flavour.RTX, device) for device in devices), Target(None, _LOCAL)]
    return {str(target): target for target in targets}


TARGETS = _named_targets()
"""Every valid target, by its name."""


def parse_target(text: str) -> Target:
    """Returns the target of that name: `rtx:sm_86`, `rtx:any`, `local`.

    Raises:
        UsageError: no target has that name; the message lists the valid names.
    """
    try:
        return TARGETS[text.strip().lower()]
    except KeyError:
        raise UsageError(f"unknown target {text!r}; valid targets: {', '.join(TARGETS)}") from None

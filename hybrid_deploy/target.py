"""Which GPU and which TensorRT an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hybrid_deploy.errors import UsageError

_RTX_CAPABILITIES = ("75", "80", "86", "89", "120", "121")
_ANY = "any"
_LOCAL = "local"


class Flavour(str, Enum):
    """The two products that build engines; they share one API and one ONNX parser."""

    RTX = "rtx"
    TENSORRT = "tensorrt"

    @property
    def product(self) -> str:
        """The product's own name."""
        return "TensorRT-RTX" if self is Flavour.RTX else "TensorRT"


@dataclass(frozen=True)
class Target:
    """What to build engines for.

    Attributes:
        flavour: The TensorRT to build with; None takes the one that is installed.
        device: `sm_86` and the like, `any` (every GPU from Ampere on) or `local`.
    """

    flavour: Flavour | None
    device: str

    def __str__(self) -> str:
        return self.device if self.flavour is None else f"{self.flavour.value}:{self.device}"

    @property
    def capability(self) -> str | None:
        """The compute capability without its dot, `86`; None where the target names none."""
        return self.device.removeprefix("sm_") if self.device.startswith("sm_") else None

    @property
    def is_local(self) -> bool:
        """Whether engines are built for the GPU of this machine, and need it present."""
        return self.device == _LOCAL


def _named_targets() -> dict[str, Target]:
    devices = [*(f"sm_{capability}" for capability in _RTX_CAPABILITIES), _ANY]
    targets = [*(Target(Flavour.RTX, device) for device in devices), Target(None, _LOCAL)]
    return {str(target): target for target in targets}


TARGETS = _named_targets()
"""Every valid target by its name."""


def parse_target(text: str) -> Target:
    """Returns the target of that name: `rtx:sm_86`, `rtx:any`, `local`.

    Raises:
        UsageError: there is no such target; the message lists those there are.
    """
    try:
        return TARGETS[text.strip().lower()]
    except KeyError:
        raise UsageError(f"unknown target {text!r}; valid targets: {', '.join(TARGETS)}") from None

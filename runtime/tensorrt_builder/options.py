"""What a user may say about how engines are built, besides their target and sizes."""

from __future__ import annotations

import msgspec

from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.target import Flavour

TIMEOUT_S = 3600.0
"""Longest build of one engine, unless told otherwise: none that was ever seen took this long."""

_AMPERE = (8, 0)


class BuildOptions(msgspec.Struct, frozen=True):
    """How to build.

    Attributes:
        workspace_bytes: Most scratch memory that a layer may take; None leaves TensorRT's limit.
        hardware_compatible: The engine runs on every GPU from Ampere on, not only on this model.
        version_compatible: The engine runs with later versions of TensorRT, too.
        timeout_s: A build that takes longer is stopped; it does not shape the engine.
    """

    workspace_bytes: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    timeout_s: float = TIMEOUT_S

    def shaping(self) -> dict[str, object]:
        """Returns what an engine depends on, for its key."""
        options = msgspec.to_builtins(self)
        assert isinstance(options, dict)
        del options["timeout_s"]
        return options


DEFAULT_OPTIONS = BuildOptions()
"""What holds where nobody says anything."""


def check_options(options: BuildOptions, flavour: Flavour, gpu: LocalGpu | None) -> None:
    """Refuses what a flavour of TensorRT, or the GPU, does not have.

    Raises:
        UsageError: it does not; the message says what there is instead.
    """
    if flavour is Flavour.RTX and options.hardware_compatible:
        raise UsageError(
            "--hardware-compatible is an option of TensorRT; TensorRT-RTX has --target rtx:any, "
            "one engine for every GPU from Ampere on"
        )
    if flavour is Flavour.RTX and options.version_compatible:
        raise UsageError(
            "--version-compatible is an option of TensorRT; engines of TensorRT-RTX run with the "
            "version that built them: leave it out, and build again after an update"
        )
    if options.hardware_compatible and gpu is not None and _number(gpu.capability) < _AMPERE:
        raise UsageError(
            f"--hardware-compatible begins with Ampere (8.0) and {gpu.name} has {gpu.capability}; "
            "leave it out"
        )


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))

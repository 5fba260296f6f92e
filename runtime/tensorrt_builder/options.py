"""Options of a build, besides its target and its optimization profile."""

from __future__ import annotations

import msgspec

from hybrid_deploy.argument_checks import is_number, shown
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.target import Flavour

TIMEOUT_S = 3600.0
"""Default time limit of one build in seconds; every measured build took less."""

_AMPERE = (8, 0)
_LONGEST_S = 1_000_000  # 12 days; the system takes 24 days


class BuildOptions(msgspec.Struct, frozen=True):
    """Options of a build.

    Attributes:
        workspace_bytes: largest scratch buffer of a layer on the GPU; None leaves TensorRT's limit.
        hardware_compatible: whether the engine runs on every GPU from Ampere on, not only on this
            model.
        version_compatible: whether the engine also runs with later versions of TensorRT.
        timeout_s: time limit of the build in seconds, over 0 and at most 1e6; the engine does not
            depend on it.

    Raises:
        UsageError: the time limit is no such number.
    """

    workspace_bytes: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        if not (is_number(self.timeout_s) and 0 < self.timeout_s <= _LONGEST_S):
            raise UsageError(
                f"timeout_s must be over 0 and at most {_LONGEST_S} seconds, got "
                f"{shown(self.timeout_s)}"
            )

    def shaping(self) -> dict[str, object]:
        """Returns the options that an engine depends on, for its key in the cache."""
        options = msgspec.to_builtins(self)
        assert isinstance(options, dict)
        del options["timeout_s"]
        return options


DEFAULT_OPTIONS = BuildOptions()
"""The options of a build without any option of the user."""


def check_options(options: BuildOptions, flavour: Flavour, gpu: LocalGpu | None) -> None:
    """Refuses options that a flavour of TensorRT, or the GPU, does not support.

    Args:
        options: options of the build.
        flavour: flavour of TensorRT.
        gpu: GPU of this machine, for the target `local`; None for every other target.

    Raises:
        UsageError: an option is not supported; the message names the alternative.
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

"""What this machine can run: facts of the machine, and a tiny inference in every backend.

Every probe is on its own: one that raises becomes a row that says so, vendor libraries are loaded
in processes of their own, and their tools are cut off when they hang.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from hybrid_deploy.runtime.doctor import (
    cpu as doctor_cpu,
)
from hybrid_deploy.runtime.doctor import (
    external_tools as doctor_tools,
)
from hybrid_deploy.runtime.doctor import (
    host as doctor_host,
)
from hybrid_deploy.runtime.doctor import (
    nvidia as doctor_nvidia,
)
from hybrid_deploy.runtime.doctor.backends import (
    Platform,
    cuda_check,
    onnxruntime_checks,
    tensorrt_checks,
)
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Trial, TrialRequest, try_isolated
from hybrid_deploy.target import Flavour

Progress = Callable[[str], None]
Probe = Callable[[], Iterable[Check]]


def diagnose(progress: Progress | None = None) -> list[Check]:
    """Looks at this machine and tries every backend.

    A backend works here if one of its checks has a `run_ms`.
    """
    say = progress or _silent
    jetson = doctor_nvidia.is_jetson()
    asked = _ask_driver()
    platform = Platform(jetson, asked.gpu)
    shared = jetson or (asked.gpu is not None and asked.gpu.shares_memory)
    probes: list[tuple[str, Probe]] = [
        *_single(
            ("system", doctor_host.system),
            ("Python", doctor_host.python),
            ("CPU", doctor_cpu.cpu),
            ("cores", doctor_cpu.cores),
            ("CPU clock", doctor_cpu.governor),
            ("large pages", doctor_cpu.large_pages),
            ("memory", partial(doctor_host.memory, shared_with_gpu=shared)),
            ("cache", doctor_host.cache),
            ("GPU", partial(doctor_nvidia.gpu, asked, jetson=jetson)),
            *_vendor_tools(jetson),
            *(
                (package.name, partial(doctor_host.optional_package, package))
                for package in doctor_host.OPTIONAL_PACKAGES
            ),
        ),
        ("ONNX Runtime CPU", partial(onnxruntime_checks, try_isolated)),
        *_single(("ONNX Runtime CUDA", partial(cuda_check, platform, try_isolated))),
        ("TensorRT", partial(tensorrt_checks, platform, Flavour.TENSORRT, try_isolated)),
        ("TensorRT-RTX", partial(tensorrt_checks, platform, Flavour.RTX, try_isolated)),
    ]
    checks: list[Check] = []
    for name, probe in probes:
        say(f"checking {name}")
        checks += isolated(name, probe)
    return checks


def isolated(name: str, probe: Probe) -> Iterator[Check]:
    """Returns the checks of a probe; if it raises, those before and one that says why."""
    try:
        yield from probe()
    except TimeoutError as error:
        remedy = "run it by hand; a driver that hangs wants a reboot"
        yield Check(name, Verdict.FAILED, str(error), remedy)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Check(name, Verdict.FAILED, reason, "this check itself failed: please report it")


def _ask_driver() -> Trial:
    try:
        return try_isolated(TrialRequest("gpu"), doctor_tools.TOOL_SECONDS)
    except OSError as error:  # not even a temporary folder
        return Trial(error=f"{error}")


def _single(*probes: tuple[str, Callable[[], Check]]) -> Iterator[tuple[str, Probe]]:
    """Makes probes of many checks from those of one."""
    for name, probe in probes:
        yield name, partial(_as_list, probe)


def _as_list(probe: Callable[[], Check]) -> list[Check]:
    return [probe()]


def _vendor_tools(jetson: bool) -> list[tuple[str, Callable[[], Check]]]:
    """Chooses the probes of tools that are here."""
    probes = []
    if shutil.which("nvidia-smi"):
        probes.append(("driver", doctor_nvidia.driver))
    if jetson:
        probes.append(("Jetson", doctor_nvidia.jetson))
    if shutil.which("nvpmodel"):
        probes.append(("power mode", doctor_nvidia.power_mode))
    return probes


def _silent(message: str) -> None:
    """Drops progress that nobody asked for."""

"""Reports what this machine can run: its parts, and a tiny inference in every backend.

No probe can stop the others: one that raises becomes a failed row, vendor libraries load in
processes of their own, and a vendor's tool that hangs is killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.runtime.doctor import cpu, external_tools, host, nvidia
from hybrid_deploy.runtime.doctor.backends import (
    Platform,
    check_cuda,
    check_onnxruntime,
    check_tensorrt,
)
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Trial, TrialRequest, try_isolated
from hybrid_deploy.target import Flavour

Probe = Callable[[], Iterable[Check]]
"""Makes the checks of one part of the machine."""


def diagnose(progress: Progress = silent) -> list[Check]:
    """Returns the checks of this machine and of every backend.

    A backend works here if one of its checks has a `run_ms`.

    Args:
        progress: called before and after each probe, which makes one or several checks.
    """
    jetson = nvidia.is_jetson()
    gpu_trial = _query_driver()
    platform = Platform(jetson, gpu_trial.gpu)
    shared = jetson or (gpu_trial.gpu is not None and gpu_trial.gpu.shares_memory)
    probes: list[tuple[str, Probe]] = [
        *_single(
            ("system", host.check_system),
            ("Python", host.check_python),
            ("CPU", cpu.check_cpu),
            ("cores", cpu.check_cores),
            ("CPU clock", cpu.check_governor),
            ("large pages", cpu.check_large_pages),
            ("memory", partial(host.check_ram, shared_with_gpu=shared)),
            ("cache", host.check_cache),
            ("GPU", partial(nvidia.check_gpu, gpu_trial, jetson=jetson)),
            *_vendor_tools(jetson),
            *(
                (package.name, partial(host.check_optional_package, package))
                for package in host.OPTIONAL_PACKAGES
            ),
        ),
        ("ONNX Runtime CPU", partial(check_onnxruntime, try_isolated)),
        *_single(("ONNX Runtime CUDA", partial(check_cuda, platform, try_isolated))),
        ("TensorRT", partial(check_tensorrt, platform, Flavour.TENSORRT, try_isolated)),
        ("TensorRT-RTX", partial(check_tensorrt, platform, Flavour.RTX, try_isolated)),
    ]
    checks: list[Check] = []
    for name, probe in probes:
        progress(f"checking {name}", 0, 1)
        checks += run_probe(name, probe)
        progress(f"checking {name}", 1, 1)
    return checks


def run_probe(name: str, probe: Probe) -> Iterator[Check]:
    """Yields the checks of a probe; an exception in the probe becomes a failed check."""
    try:
        yield from probe()
    except TimeoutError as error:
        remedy = "run it by hand; if the driver hangs: reboot"
        yield Check(name, Verdict.FAILED, str(error), remedy)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Check(name, Verdict.FAILED, reason, "this check itself failed: please report it")


def _query_driver() -> Trial:
    try:
        return try_isolated(TrialRequest("gpu"), external_tools.TOOL_SECONDS)
    except OSError as error:  # no temporary folder can be made
        return Trial(error=f"{error}")


def _single(*probes: tuple[str, Callable[[], Check]]) -> Iterator[tuple[str, Probe]]:
    """Turns functions that return one check into probes."""
    for name, probe in probes:
        yield name, partial(_as_list, probe)


def _as_list(probe: Callable[[], Check]) -> list[Check]:
    return [probe()]


def _vendor_tools(jetson: bool) -> list[tuple[str, Callable[[], Check]]]:
    """Returns the checks whose tools are installed here."""
    probes = []
    if shutil.which("nvidia-smi"):
        probes.append(("driver", nvidia.check_driver))
    if jetson:
        probes.append(("Jetson", nvidia.check_jetson))
    if shutil.which("nvpmodel"):
        probes.append(("power mode", nvidia.check_power_mode))
    return probes

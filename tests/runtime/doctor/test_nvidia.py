"""The texts below have the formats of NVIDIA's tools on an RTX 4090, an H100, Orin and Thor."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor import external_tools, nvidia
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.isolated_trial import Gpu, Trial
from hybrid_deploy.runtime.doctor.nvidia import (
    L4t,
    SmiGpu,
    driver_remedy,
    parse_jetpack,
    parse_nvpmodel,
    parse_smi,
    parse_tegra_release,
)

RTX = "NVIDIA GeForce RTX 4090, 570.133.07, 24564, 23011, 300.00, 450.00\n"
H100 = "NVIDIA H100 80GB HBM3, 550.54.15, 81559, 81046, 700.00, 700.00\n"
ORIN_SMI = "Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], [N/A]\n"
ORIN_RELEASE = """# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025
# KERNEL_VARIANT: oot
TARGET_USERSPACE_LIB_DIR=nvidia
TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia
"""  # noqa: E501
JETPACK_6_0 = "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic, EABI: aarch64\n"
ORIN = Gpu("Orin", "8.7", "12.6", 30 * 10**9, True)
MAXWELL = Gpu("NVIDIA GeForce GTX 970", "5.2", "12.4", 4 * 10**9, False)


def put_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def board(root: Path, release: str) -> Path:
    for path, text in (
        ("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0"),
        ("proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0"),
        ("etc/nv_tegra_release", release),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_nvidia_smi() -> None:
    name = "NVIDIA GeForce RTX 4090"
    assert parse_smi(RTX) == [SmiGpu(name, "570.133.07", 24564, 23011, 300, 450)]
    assert parse_smi(ORIN_SMI) == [SmiGpu("Orin (nvgpu)", "540.4.0", None, None, None, None)]
    assert len(parse_smi(RTX + H100)) == 2
    assert parse_smi("No devices were found\n") == []


def test_nv_tegra_release() -> None:
    assert parse_tegra_release(ORIN_RELEASE) == L4t(36, 4, 3)
    assert parse_tegra_release("# R38 (release), REVISION: 2, GCID: 1") == L4t(38, 2, 0)
    assert parse_tegra_release("nothing") is None


def test_nvpmodel() -> None:
    assert parse_nvpmodel("NV Power Mode: MAXN_SUPER\n2\n") == "MAXN_SUPER"
    assert parse_nvpmodel("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n") == "MODE_15W"
    assert parse_nvpmodel("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13\n") is None


def test_jetpack() -> None:
    assert parse_jetpack("installed 6.2.1+b38") == "6.2.1"
    assert parse_jetpack("not-installed ") is None
    assert parse_jetpack("") is None


def test_driver_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(tmp_path, monkeypatch, "nvidia-smi", f"printf '{H100}'")
    text = "550.54.15; NVIDIA H100 80GB HBM3, 81046 of 81559 MiB free, limit 700 of 700 W"
    assert nvidia.check_driver() == Check("driver", Verdict.OK, text)
    put_tool(tmp_path, monkeypatch, "nvidia-smi", f"printf '{RTX}'")
    limited = nvidia.check_driver()
    assert limited.verdict is Verdict.WARN and limited.finding.endswith("limit 300 of 450 W")
    put_tool(tmp_path, monkeypatch, "nvidia-smi", f"printf '{ORIN_SMI}'")
    assert nvidia.check_driver().finding == "540.4.0; Orin (nvgpu)"


def test_a_driver_that_does_not_answer_its_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "Failed to initialize NVML: Driver/library version mismatch"
    put_tool(tmp_path, monkeypatch, "nvidia-smi", f"echo '{message}'; exit 18")
    check = nvidia.check_driver()
    assert (check.verdict, check.finding) == (Verdict.FAILED, f"nvidia-smi: {message}")
    assert check.remedy is not None and "reboot" in check.remedy


def test_a_tool_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(tmp_path, monkeypatch, "nvpmodel", "sleep 600")
    monkeypatch.setattr(external_tools, "TOOL_SECONDS", 0.3)
    with pytest.raises(TimeoutError, match=r"^nvpmodel gave no answer in 0\.3 s$"):
        nvidia.check_power_mode()


def test_power_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(tmp_path, monkeypatch, "nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    assert nvidia.check_power_mode() == Check("power mode", Verdict.OK, "MAXN")
    put_tool(tmp_path, monkeypatch, "nvpmodel", "echo 'NV Power Mode: MODE_30W'; echo 2")
    assert nvidia.check_power_mode().verdict is Verdict.WARN
    put_tool(tmp_path, monkeypatch, "nvpmodel", "echo 'NVPM ERROR: not root'; exit 255")
    assert nvidia.check_power_mode().finding == "nvpmodel: NVPM ERROR: not root"


def test_jetson_with_its_jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = board(tmp_path, ORIN_RELEASE)
    put_tool(tmp_path, monkeypatch, "dpkg-query", "printf 'installed 6.2+b77'")
    assert nvidia.is_jetson(root)
    text = "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3, JetPack 6.2"
    assert nvidia.check_jetson(root) == Check("Jetson", Verdict.OK, text)
    put_tool(tmp_path, monkeypatch, "dpkg-query", "echo 'no packages found' >&2; exit 1")
    assert nvidia.check_jetson(root).remedy == (
        "for CUDA and TensorRT of JetPack: sudo apt install nvidia-jetpack"
    )


def test_a_jetpack_that_is_too_old(tmp_path: Path) -> None:
    check = nvidia.check_jetson(board(tmp_path, JETPACK_6_0))
    assert check.remedy == "its TensorRT is older than 10.3: install JetPack 6.1 or newer"


def test_a_jetson_container_without_the_nvidia_runtime(tmp_path: Path) -> None:
    root = board(tmp_path, "")
    (root / "etc/nv_tegra_release").unlink()
    assert nvidia.is_jetson(root)
    remedy = nvidia.check_jetson(root).remedy
    assert remedy is not None and "--runtime nvidia" in remedy
    assert not nvidia.is_jetson(tmp_path / "elsewhere")


def test_gpu_row(tmp_path: Path) -> None:
    check = nvidia.check_gpu(Trial(gpu=ORIN), jetson=True, root=tmp_path)
    assert check == Check("GPU", Verdict.OK, "Orin, sm_87, shared memory, CUDA 12.6")
    old = nvidia.check_gpu(Trial(gpu=MAXWELL), jetson=False, root=tmp_path)
    assert (old.verdict, old.finding) == (
        Verdict.WARN,
        "NVIDIA GeForce GTX 970, sm_52, 4.0 GB, CUDA 12.4",
    )


def test_no_gpu_and_a_gpu_without_a_driver(tmp_path: Path) -> None:
    failed = Trial(error="no driver")
    assert nvidia.check_gpu(failed, jetson=False, root=tmp_path).verdict is Verdict.MISSING
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030000\n")
    check = nvidia.check_gpu(failed, jetson=False, root=tmp_path)
    assert check.verdict is Verdict.FAILED
    assert check.remedy == ("a GPU is on the PCI bus: install NVIDIA's driver 580 or newer, reboot")


def test_driver_too_old_for_a_library() -> None:
    assert driver_remedy(ORIN, 12) is None
    assert driver_remedy(None, 13) is None
    assert driver_remedy(ORIN, None) is None
    assert driver_remedy(ORIN, 13) == (
        "the driver supports CUDA 12.6, the library needs CUDA 13: install driver 580+"
    )


@pytest.mark.trt
def test_cuda_of_an_installed_wheel() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert nvidia.cuda_major_of_package("tensorrt-rtx") in (12, 13)
    assert nvidia.cuda_major_of_package("not-a-package") is None

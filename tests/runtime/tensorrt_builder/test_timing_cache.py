"""The file of measured kernel times; nothing is measured here, which would take a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.timing_cache import attach, save, timing_cache_file
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import load_tensorrt
from hybrid_deploy.target import Flavour

ORIN = LocalGpu("Orin (nvgpu)", "8.7")
FOREIGN, SPOILED = b"of another GPU", b"spoiled"


class Times:
    """A fake `ITimingCache`."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class Config:
    """A fake `IBuilderConfig` that behaves as its documentation describes."""

    times: Times | None = None

    def create_timing_cache(self, content: bytes) -> Times | None:
        return None if content == SPOILED else Times(content)

    def set_timing_cache(self, times: Times, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if times.content != FOREIGN:
            self.times = times
        return times.content != FOREIGN

    def get_timing_cache(self) -> Times | None:
        return self.times


def test_one_file_for_each_version_and_gpu(tmp_path: Path) -> None:
    file = timing_cache_file(tmp_path, Flavour.TENSORRT, "10.3.0", ORIN)
    assert file == tmp_path / "timing-10.3.0-Orin-nvgpu-8.7.cache"
    assert timing_cache_file(tmp_path, Flavour.TENSORRT, "10.16.1", ORIN) != file


@pytest.mark.parametrize("gpu", [None, ORIN])
def test_tensorrt_rtx_gets_no_timing_cache(tmp_path: Path, gpu: LocalGpu | None) -> None:
    assert timing_cache_file(tmp_path, Flavour.RTX, "1.7", gpu) is None


def test_times_of_one_build_reach_the_next(tmp_path: Path) -> None:
    file, first, second = tmp_path / "times", Config(), Config()
    assert attach(first, file) is first.times
    assert first.times is not None and first.times.content == b""
    first.times.content = b"measured"
    save(first, file)
    attach(second, file)
    assert second.times is not None and second.times.content == b"measured"


@pytest.mark.parametrize("content", [FOREIGN, SPOILED])
def test_unusable_file_is_replaced_by_an_empty_timing_cache(tmp_path: Path, content: bytes) -> None:
    file, config = tmp_path / "times", Config()
    file.write_bytes(content)
    attach(config, file)
    assert config.times is not None and config.times.content == b""


def test_failed_write_of_times_is_no_error(tmp_path: Path) -> None:
    config = Config()
    attach(config, tmp_path / "times")
    save(config, tmp_path / "absent" / "times")
    save(Config(), tmp_path / "none")
    assert not list(tmp_path.iterdir())


@pytest.mark.trt
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_calls_exist_in_the_api_of_tensorrt_rtx(tmp_path: Path) -> None:
    """The API is that of TensorRT; builds with TensorRT-RTX never make these calls."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    vendor = load_tensorrt(Flavour.RTX)
    builder = vendor.module.Builder(vendor.log)
    config = builder.create_builder_config()
    times = attach(config, tmp_path / "times")
    assert isinstance(times, vendor.module.ITimingCache)
    save(config, tmp_path / "times")
    assert (tmp_path / "times").stat().st_size > 0

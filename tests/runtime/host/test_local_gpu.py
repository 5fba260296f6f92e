import ctypes

import pytest

from hybrid_deploy.runtime.host.local_gpu import LocalGpu, local_gpu


class FakeDriver:
    """The four functions of libcuda that `local_gpu` calls."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGet(self, device: object, index: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetName(self, name: object, size: int, device: object) -> int:  # noqa: N802
        name.value = b"NVIDIA Orin"  # type: ignore[attr-defined]
        return 0

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: object) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]  # type: ignore[attr-defined]
        return 0


def test_name_and_capability_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert local_gpu() == LocalGpu("NVIDIA Orin", "8.7")


def test_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(status=100))
    assert local_gpu() is None


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert local_gpu() is None

"""Large pages: the kernel moves new RAM onto them, and the contents of that RAM stay the same."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.runtime.host import large_pages
from hybrid_deploy.runtime.host.large_pages import (
    LargePages,
    anonymous_ranges,
    collapse,
    subtract_ranges,
)
from hybrid_deploy.runtime.session.session import load_session

_OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_BYTES = 16 << 20


def offered() -> bool:
    """Returns whether this kernel moves pages on request: Linux 6.1 or later, not switched off."""
    if not _OFFERED.exists() or "[never]" in _OFFERED.read_text():
        return False
    release = Path("/proc/sys/kernel/osrelease").read_text().split(".")
    return (int(release[0]), int(release[1])) >= (6, 1)


def large_bytes(address: int) -> int:
    """Returns how many bytes of the mapping at an address lie on large pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and (size := re.match(r"AnonHugePages:\s+(\d+) kB", line)):
            return int(size[1]) << 10
    return 0


class Mapped:
    """A mapping of its own, filled with numbers."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.cells: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.cells[:] = np.arange(_BYTES) % 251
        self.first = self.cells.ctypes.data
        self.middle = self.first + _BYTES // 2


@pytest.mark.skipif(not offered(), reason="this kernel moves no pages on request")
def test_the_second_use_moves_new_ram_and_keeps_its_contents() -> None:
    old = Mapped()
    before = large_bytes(old.middle)
    pages = LargePages()
    new = Mapped()
    expected = new.cells.copy()
    pages.use()
    assert large_bytes(new.middle) == 0
    probe = Mapped()
    collapse([(probe.first, probe.first + _BYTES)])
    if not large_bytes(probe.middle):
        pytest.skip("no RAM is left for large pages")
    pages.use()
    assert large_bytes(new.middle) >= _BYTES // 2  # its ends need not be aligned
    assert large_bytes(old.middle) == before
    np.testing.assert_array_equal(new.cells, expected)


def test_ranges_are_subtracted() -> None:
    assert subtract_ranges([(0, 10), (20, 30)], []) == [(0, 10), (20, 30)]
    assert subtract_ranges([(0, 10), (20, 30)], [(0, 10)]) == [(20, 30)]
    assert subtract_ranges([(0, 30)], [(5, 10), (12, 13), (29, 40)]) == [(0, 5), (10, 12), (13, 29)]
    assert subtract_ranges([(5, 10)], [(0, 20)]) == []
    assert subtract_ranges([(5, 10)], [(0, 5), (10, 20)]) == [(5, 10)]


def test_only_writable_ram_without_a_file_is_anonymous(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "00400000-00500000 r-xp 00000000 08:01 12 /usr/bin/python3\n"
        "00600000-00700000 rw-p 00000000 08:01 12 /usr/bin/python3\n"
        "01000000-02000000 rw-p 00000000 00:00 0 [heap]\n"
        "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n"
        "7f1000000000-7f1000400000 r--p 00000000 00:00 0 \n"
        "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n"
    )
    assert anonymous_ranges(maps) == [(0x1000000, 0x2000000), (0x7F0000000000, 0x7F0000400000)]
    assert anonymous_ranges(tmp_path / "absent") == []


def test_a_kernel_without_large_pages_is_not_asked_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[tuple[int, int, int]] = []

    def madvise(address: int, length: int, advice: int) -> int:
        requests.append((address, length, advice))
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(madvise=madvise))
    (tmp_path / "page_bytes").write_text("4096\n")
    monkeypatch.setattr(large_pages, "_PAGE_BYTES", tmp_path / "page_bytes")
    collapse([(1, 3 * 4096)])
    assert requests == [(4096, 2 * 4096, 14), (4096, 2 * 4096, 25)]  # MADV_HUGEPAGE, _COLLAPSE
    requests.clear()
    monkeypatch.setattr(large_pages, "_PAGE_BYTES", tmp_path / "absent")
    collapse([(1, 3 * 4096)])
    assert requests == []


@pytest.mark.parametrize("enabled", [True, False])
def test_a_session_moves_its_pages_once_and_only_if_enabled(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    moved: list[list[large_pages.AddressRange]] = []
    monkeypatch.setattr(large_pages, "collapse", moved.append)
    session = load_session(tiny_path, large_pages=enabled)
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    for uses in range(1, 4):
        session.run_arrays(image)
        assert len(moved) == (enabled and uses > 1)


def test_tokens_are_the_same_before_and_after_the_move(tiny_path: Path) -> None:
    images = np.random.default_rng(3).standard_normal((4, 1, 8, 24)).astype(np.float32)
    session = load_session(tiny_path)
    first, second, third = (session.run_arrays({"image": images})[0] for _ in range(3))
    assert [row.tokens for row in first] == [row.tokens for row in second]
    assert [row.tokens for row in first] == [row.tokens for row in third]

"""Memory on large pages: the kernel does it, what is in it stays, and only new memory is moved."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.runtime.host import large_pages
from hybrid_deploy.runtime.host.large_pages import LargePages, anonymous_ranges, collapse, without
from hybrid_deploy.runtime.session.session import load_session

_OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_BYTES = 16 << 20


def offered() -> bool:
    """Returns whether this kernel moves pages when asked: Linux 6.1, not switched off."""
    if not _OFFERED.exists() or "[never]" in _OFFERED.read_text():
        return False
    release = Path("/proc/sys/kernel/osrelease").read_text().split(".")
    return (int(release[0]), int(release[1])) >= (6, 1)


def large_bytes(address: int) -> int:
    """Returns how much of the mapping at an address lies on large pages."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif here and (found := re.match(r"AnonHugePages:\s+(\d+) kB", line)):
            return int(found[1]) << 10
    return 0


class Mapped:
    """Memory of its own mapping, filled."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.cells: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.cells[:] = np.arange(_BYTES) % 251
        self.first = self.cells.ctypes.data
        self.middle = self.first + _BYTES // 2


@pytest.mark.skipif(not offered(), reason="this kernel moves no pages when asked")
def test_the_second_use_moves_what_is_new_and_keeps_its_numbers() -> None:
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
        pytest.skip("no memory is left for large pages")
    pages.use()
    assert large_bytes(new.middle) >= _BYTES // 2  # its ends need not be aligned
    assert large_bytes(old.middle) == before
    np.testing.assert_array_equal(new.cells, expected)


def test_ranges_without_others() -> None:
    assert without([(0, 10), (20, 30)], []) == [(0, 10), (20, 30)]
    assert without([(0, 10), (20, 30)], [(0, 10)]) == [(20, 30)]
    assert without([(0, 30)], [(5, 10), (12, 13), (29, 40)]) == [(0, 5), (10, 12), (13, 29)]
    assert without([(5, 10)], [(0, 20)]) == []
    assert without([(5, 10)], [(0, 5), (10, 20)]) == [(5, 10)]


def test_only_memory_without_a_file_counts(tmp_path: Path) -> None:
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
    assert anonymous_ranges(tmp_path / "none") == []


def test_where_the_system_has_no_large_pages_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(large_pages, "_PAGE_BYTES", tmp_path / "none")
    collapse([(0, 1 << 40)])


@pytest.mark.parametrize("wanted", [True, False])
def test_a_session_moves_its_pages_once_unless_told_not_to(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    moved: list[list[large_pages.Range]] = []
    monkeypatch.setattr(large_pages, "collapse", moved.append)
    session = load_session(tiny_path, large_pages=wanted)
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    for uses in range(1, 4):
        session.run_arrays(image)
        assert len(moved) == (wanted and uses > 1)


def test_tokens_stay_what_they_were(tiny_path: Path) -> None:
    images = np.random.default_rng(3).standard_normal((4, 1, 8, 24)).astype(np.float32)
    session = load_session(tiny_path)
    first, second, third = (session.run_arrays({"image": images})[0] for _ in range(3))
    assert [row.tokens for row in first] == [row.tokens for row in second]
    assert [row.tokens for row in first] == [row.tokens for row in third]

"""Golden files are decoded from verified copies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.golden_copy import golden_copy
from hybrid_deploy.errors import BundleError
from hybrid_deploy.temporary_names import scratch_name


def test_the_copy_is_what_the_manifest_lists(own_path: Path) -> None:
    bundle = open_bundle(own_path)
    golden = own_path / "golden" / "page.png"
    original = golden.read_bytes()
    with golden_copy(bundle) as folder:
        golden.write_bytes(original[::-1])
        assert [path.name for path in folder.rglob("*.png")] == ["page.png"]
        assert (folder / "golden" / "page.png").read_bytes() == original
    assert not folder.exists()
    with pytest.raises(BundleError, match=r"golden/page\.png was changed"):
        with golden_copy(bundle):
            pass


def test_the_copy_of_a_killed_process_is_removed_by_the_next(
    own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / scratch_name("golden")
    dead.mkdir()
    with golden_copy(open_bundle(own_path)):
        assert not dead.exists()

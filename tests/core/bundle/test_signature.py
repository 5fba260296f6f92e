"""A signed bundle is accepted from a trusted key alone, unchanged, and not in an older version."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("cryptography")

from hybrid_deploy.bundle import lock
from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle, staged_variant
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.paths import SIGNATURE_FILE
from hybrid_deploy.bundle.signature import Trust, signatures_of
from hybrid_deploy.bundle.signing import make_keys, sign
from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError, UsageError

Keys = tuple[Path, Path]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "release.key")


@pytest.fixture
def other_keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path / "other.key")


@pytest.fixture
def signed(own_path: Path, keys: Keys) -> Path:
    sign(own_path, keys[0], version=3)
    return own_path


@pytest.mark.parametrize("whole_files", [0, 1])
def test_a_full_disk_leaves_no_half_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_files: int
) -> None:
    flush, left = os.fsync, iter(range(whole_files))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_keys(tmp_path / "release.key")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_a_trusted_key_is_opened(signed: Path, keys: Keys, other_keys: Keys) -> None:
    open_bundle(signed)
    open_bundle(signed, trust=Trust((keys[1],)))
    open_bundle(signed, only="fp32", trust=Trust((other_keys[1], keys[1]), at_least=3))


def test_a_bundle_without_a_signature_is_refused(own_path: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match="is not signed; sign it where it was made"):
        open_bundle(own_path, trust=Trust((keys[1],)))


def test_a_key_that_is_not_trusted_is_refused(signed: Path, keys: Keys, other_keys: Keys) -> None:
    with pytest.raises(BundleError, match=r"is signed by key \w{8}, which is not trusted"):
        open_bundle(signed, trust=Trust((other_keys[1],)))
    with pytest.raises(BundleError, match="which is not trusted"):
        open_bundle(signed, trust=Trust(()))


def test_an_older_version_is_refused(signed: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match="has version 3, at least 4 is required"):
        open_bundle(signed, trust=Trust((keys[1],), at_least=4))


def test_a_changed_file_is_refused(signed: Path, keys: Keys) -> None:
    path = signed / "fp32" / "step.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"step\.onnx was changed"):
        open_bundle(signed, trust=Trust((keys[1],)))


def test_a_variant_that_is_added_afterwards_needs_a_new_signature(signed: Path, keys: Keys) -> None:
    add_variant(signed)
    trust = Trust((keys[1],))
    with pytest.raises(BundleError, match=r"was changed after key \w{8} signed it"):
        open_bundle(signed, trust=trust)
    sign(signed, keys[0], version=4)
    open_bundle(signed, trust=trust)


def add_variant(folder: Path) -> None:
    bundle = open_bundle(folder)
    with staged_variant(bundle, "copy") as staged:
        original = bundle.manifest.variants["fp32"]
        for name in bundle.manifest.files:
            if name.startswith("fp32/"):
                (staged.folder / Path(name).name).write_bytes((folder / name).read_bytes())
        changed: dict[str, Any] = {}
        for role in ("encoder", "step", "prefill", "beam_step"):
            graph = getattr(original, role)
            file = f"{staged.home}/{Path(graph.file).name}"
            changed[role] = msgspec.structs.replace(graph, file=file)
        staged.variant = msgspec.structs.replace(original, **changed)


def change_version(record: dict[str, Any]) -> None:
    record["version"] = 9


def change_signature(record: dict[str, Any]) -> None:
    record["signature"] = record["signature"][:-1] + (
        "0" if record["signature"][-1] != "0" else "1"
    )


def shorten_signature(record: dict[str, Any]) -> None:
    record["signature"] = record["signature"][:10]


def leave_hexadecimal(record: dict[str, Any]) -> None:
    record["signature"] = "xyz"


def make_the_version_negative(record: dict[str, Any]) -> None:
    record["version"] = -1


@pytest.mark.parametrize(
    "change",
    [
        change_version,
        change_signature,
        shorten_signature,
        leave_hexadecimal,
        make_the_version_negative,
    ],
)
def test_a_changed_signature_is_refused(
    signed: Path, keys: Keys, change: Callable[[dict[str, Any]], None]
) -> None:
    records = json.loads((signed / SIGNATURE_FILE).read_bytes())
    change(records[0])
    (signed / SIGNATURE_FILE).write_text(json.dumps(records))
    with pytest.raises(BundleError, match="was changed after"):
        open_bundle(signed, trust=Trust((keys[1],)))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b" " * 70_000])
def test_a_damaged_file_of_signatures_is_one_line(signed: Path, keys: Keys, content: bytes) -> None:
    (signed / SIGNATURE_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"signature\.json is damaged"):
        open_bundle(signed, trust=Trust((keys[1],)))


def test_the_signature_of_another_bundle_is_refused(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    stolen = (signed / SIGNATURE_FILE).read_bytes()
    (signed / SIGNATURE_FILE).unlink()
    add_variant(signed)
    (signed / SIGNATURE_FILE).write_bytes(stolen)
    with pytest.raises(BundleError, match="was changed after"):
        open_bundle(signed, trust=Trust((keys[1],)))


def test_what_changed_during_the_wait_is_not_signed(
    own_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    monkeypatch.setattr(lock, "_report_wait", lambda target: waits.set())
    with ThreadPoolExecutor(1) as pool:
        with exclusive(own_path):
            signing = pool.submit(sign, own_path, keys[0], 7)
            assert waits.wait(60)
            manifest = msgspec.structs.replace(open_bundle(own_path).manifest, name="other")
            seal_bundle(own_path, manifest)
        with pytest.raises(BundleError, match=r"another process changed .*, and sign it again"):
            signing.result(60)
    assert not (own_path / SIGNATURE_FILE).exists()


def test_a_damaged_bundle_is_not_signed(own_path: Path, keys: Keys) -> None:
    (own_path / "fp32" / "step.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is damaged: fp32/step\.onnx was changed"):
        sign(own_path, keys[0], version=0)
    with pytest.raises(InputError, match=r"missing\.bundle does not exist"):
        sign(own_path.with_name("missing.bundle"), keys[0], version=0)
    assert not (own_path / SIGNATURE_FILE).exists()


@pytest.mark.parametrize("version", [float("nan"), -1, True, "1", 1 << 63, None])
def test_a_version_is_a_whole_number(own_path: Path, keys: Keys, version: Any) -> None:
    with pytest.raises(UsageError, match=r"^at_least must be a whole number from 0 to "):
        Trust((keys[1],), at_least=version)
    with pytest.raises(UsageError, match=r"^the version must be a whole number from 0 to "):
        sign(own_path, keys[0], version=version)


def test_keys_are_a_list_of_paths(signed: Path, keys: Keys) -> None:
    open_bundle(signed, trust=Trust((str(keys[1]),)))
    open_bundle(signed, trust=Trust([keys[1]]))
    for wrong in (keys[1], str(keys[1]), 3, None):
        with pytest.raises(UsageError, match=r"^a list of paths were expected, got "):
            Trust(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^a path was expected, got 3"):
        Trust((3,))  # type: ignore[arg-type]


@pytest.mark.parametrize("trust", [False, True, "release.key.pub", ()])
def test_a_trust_is_a_trust(signed: Path, trust: Any) -> None:
    with pytest.raises(UsageError, match=r"^trust must be a Trust\(\(public_key,\)\) or None, got"):
        open_bundle(signed, trust=trust)


def test_an_old_key_gives_way_to_a_new_one(signed: Path, keys: Keys, other_keys: Keys) -> None:
    sign(signed, other_keys[0], version=4)
    assert len(signatures_of(signed)) == 2
    for key in (keys[1], other_keys[1]):
        open_bundle(signed, trust=Trust((key,)))
    sign(signed, keys[0], version=5)
    assert sorted(signature.version for signature in signatures_of(signed)) == [4, 5]


def test_a_private_key_is_private_and_never_replaced(keys: Keys) -> None:
    if sys.platform != "win32":
        assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    content = keys[0].read_bytes()
    with pytest.raises(InputError, match="a key is never replaced"):
        make_keys(keys[0])
    keys[0].rename(keys[0].with_name("moved"))
    with pytest.raises(InputError, match="a key is never replaced"):
        make_keys(keys[0])
    assert keys[0].with_name("moved").read_bytes() == content


def test_files_that_are_no_keys(own_path: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\xff\0")
    with pytest.raises(InputError, match="noise is no key of keygen"):
        sign(own_path, tmp_path / "noise", version=0)
    with pytest.raises(InputError, match=r"missing\.key does not exist"):
        sign(own_path, tmp_path / "missing.key", version=0)
    sign(own_path, keys[0], version=0)
    with pytest.raises(InputError, match="is no key of keygen"):
        open_bundle(own_path, trust=Trust((keys[0],)))


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no such modes")
@pytest.mark.parametrize("mode", [0o666, 0o640, 0o602])
def test_a_private_key_of_others_is_refused(own_path: Path, keys: Keys, mode: int) -> None:
    keys[0].chmod(mode)
    with pytest.raises(InputError, match=rf"has mode 0{mode:o}, .* chmod 600 .*release\.key"):
        sign(own_path, keys[0], version=0)
    assert not (own_path / SIGNATURE_FILE).exists()
    keys[0].chmod(0o400)
    sign(own_path, keys[0], version=0)


def test_a_file_of_two_keys_is_refused(own_path: Path, keys: Keys, other_keys: Keys) -> None:
    sign(own_path, keys[0], version=0)
    for path, other in zip(keys, other_keys, strict=True):
        path.write_bytes(path.read_bytes() + other.read_bytes())
    with pytest.raises(InputError, match=r"key\.pub has 2 keys, one was expected"):
        open_bundle(own_path, trust=Trust((keys[1],)))
    with pytest.raises(InputError, match=r"release\.key has 2 keys, one was expected"):
        sign(own_path, keys[0], version=1)


def test_a_key_of_gigabytes_is_not_read(own_path: Path, keys: Keys) -> None:
    sign(own_path, keys[0], version=0)
    with keys[1].open("ab") as file:
        file.truncate(3 << 30)
    with pytest.raises(InputError, match="is larger than 65536 bytes"):
        open_bundle(own_path, trust=Trust((keys[1],)))


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [a_link, a_pipe])
def test_signatures_that_are_no_file_are_refused(
    signed: Path, keys: Keys, change: Callable[[Path], None]
) -> None:
    change(signed / SIGNATURE_FILE)
    for read in (lambda: signatures_of(signed), lambda: sign(signed, keys[0], version=4)):
        with pytest.raises(BundleError, match=r"signature\.json is (a link|no file)"):
            read()


def test_without_the_library_the_error_names_the_extra(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingDependencyError, match=r"hybrid-deploy\[sign\]"):
        open_bundle(signed, trust=Trust((keys[1],)))

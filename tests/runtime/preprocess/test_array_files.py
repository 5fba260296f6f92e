import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess import array_files
from hybrid_deploy.runtime.preprocess.array_files import load_arrays, read_npz

PICTURE = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)


def npy(header: str) -> bytes:
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


@pytest.mark.parametrize("array", [PICTURE, np.asfortranarray(PICTURE), PICTURE.astype(">f8")])
def test_arrays_are_read_as_they_are(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", image=array, other=array)
    for file in ("a.npy", "a.npz"):
        (loaded,) = load_arrays(tmp_path / file, ["image"]).values()
        assert loaded.dtype == array.dtype
        np.testing.assert_array_equal(loaded, array)
    assert set(read_npz(tmp_path / "a.npz")) == {"image", "other"}


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<U9', 'fortran_order': False, 'shape': (1,), }",
        "[" * 3000,
        "-" * 9000 + "1",
    ],
)
def test_false_headers_allocate_nothing(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header))
    with pytest.raises(InputError, match=r"a\.npy is not a \.npy array: "):
        load_arrays(path, ["image"])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(path, "image.npy")
    with pytest.raises(InputError, match=r"a\.npz is a damaged \.npz file: "):
        load_arrays(tmp_path / "a.npz", ["image"])


def test_a_long_header_suggests_no_pickle(tmp_path: Path) -> None:
    content = b"(" * 200_000
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(content)) + content)
    with pytest.raises(InputError) as caught:
        load_arrays(path, ["image"])
    assert str(caught.value) == (
        f"{path} is not a .npy array: its header has 200000 bytes, over 10000"
    )


def test_an_archive_that_unpacks_to_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, image=np.zeros(1_000_000, np.float32))
    path = tmp_path / "a.npz"
    path.write_bytes(content.getvalue())
    assert path.stat().st_size < 10_000
    assert load_arrays(path, ["image"])["image"].nbytes == 4_000_000
    monkeypatch.setattr(array_files, "LARGEST_BYTES", 3_000_000)
    with pytest.raises(InputError, match=r"holds 0\.0 GB of arrays, over 0\.0; split it"):
        load_arrays(path, ["image"])

"""Pictures as cameras, scanners and phones write them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.image import load_image
from hybrid_deploy.runtime.preprocess.video_frames import load_frames

ORIENTATION = 274  # EXIF tag
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def saved(path: Path, pixels: NDArray[np.generic], **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_applied(tmp_path: Path, orientation: int) -> None:
    """The file holds the upright picture transposed, as the EXIF standard numbers the ways."""
    stored = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, 1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(path)), GREY)


def test_an_orientation_with_sixteen_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    path = saved(
        tmp_path / "a.png",
        np.ascontiguousarray(GREY[::-1, ::-1]).astype(np.uint16) * 257,
        exif=exif,
    )
    np.testing.assert_array_equal(np.asarray(load_image(path)), GREY)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("16.png", GREY.astype(np.uint16) * 257),
        ("16.tif", GREY.astype(np.uint16) * 257),
        ("big-endian.tif", (GREY.astype(np.uint16) * 257).astype(">u2")),
        ("dark.png", (GREY // 100).astype(np.uint16) * 257),
        ("32 bits of 8.tif", GREY.astype(np.int32)),
        ("32 bits of 16.tif", GREY.astype(np.int32) * 257),
        ("share.tif", GREY.astype(np.float32) / 255),
        ("levels.tif", GREY.astype(np.float32)),
    ],
)
def test_more_bits_are_scaled(tmp_path: Path, name: str, pixels: NDArray[np.generic]) -> None:
    image = load_image(saved(tmp_path / name, pixels))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), GREY // 100 if "dark" in name else GREY)


def twelve_bit_tiff(levels: NDArray[np.generic]) -> bytes:
    """Returns an uncompressed TIFF file of 12 bits per pixel, two pixels in three bytes."""
    height, width = levels.shape
    strip = b"".join(
        ((int(first) << 12) | int(second)).to_bytes(3, "big")
        for first, second in levels.reshape(-1, 2)
    )
    fields = [(256, width), (257, height), (258, 12), (259, 1), (262, 1)]
    fields += [(273, 8), (277, 1), (278, height), (279, len(strip))]
    directory = struct.pack("<H", len(fields))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + directory + bytes(4)


def test_twelve_bits_are_scaled_by_what_the_file_declares(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(twelve_bit_tiff((GREY.astype(np.uint32) * 4095 + 127) // 255))
    np.testing.assert_array_equal(np.asarray(load_image(path)), GREY)


def test_a_tiff_file_with_an_empty_second_page_is_one_line(tmp_path: Path) -> None:
    content = twelve_bit_tiff(GREY)
    second = struct.pack("<I", len(content)) + struct.pack("<HI", 0, 0)  # no tag, no third page
    path = tmp_path / "a.tif"
    path.write_bytes(content[:-4] + second)
    with pytest.raises(InputError, match=r"a\.tif is a damaged image"):
        load_image(path)


def test_an_orientation_among_damage_is_read_in_silence(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    path = saved(tmp_path / "a.webp", GREY, exif=exif, lossless=True)
    content = path.read_bytes()
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    assert block in content
    path.write_bytes(content.replace(block, block[:8] + b"\xff\xff" + block[10:]))
    assert load_image(path).size == (4, 3)


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan])
def test_values_that_are_no_grey_level_are_refused(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "a.tif", np.array([[0.5, value]], np.float32))
    with pytest.raises(InputError, match="0 to 1, 255 or 65535 were expected"):
        load_image(path)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_several_pictures_in_one_file_are_refused_unless_a_video_is_expected(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.fromarray(GREY + 5 * n) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"holds 3 pictures \(pages or frames\), one was expected"):
        load_image(path)
    assert len(load_frames(path, 8)) == 3


def test_the_preview_in_a_phone_photo_is_left_out(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", size, "red") for size in ((40, 20), (10, 5)))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert load_image(tmp_path / "a.jpg").size == (40, 20)

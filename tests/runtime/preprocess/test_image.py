"""Pictures as cameras, scanners and phones write them."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.input_specs import ImageInput, PatchesInput, PixelsInput
from hybrid_deploy.bundle.pixel_steps import Resize, ResizeShortestEdge
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess import video_frames
from hybrid_deploy.runtime.preprocess.image import FORMATS, load_image
from hybrid_deploy.runtime.preprocess.prepare import file_kind, prepare
from hybrid_deploy.runtime.preprocess.video_frames import load_frames
from tests.benchmarks.reliability.trials import PeakRam

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
    with pytest.raises(
        InputError, match=r"holds several pictures \(pages or frames\), one was expected"
    ):
        load_image(path)
    assert len(list(load_frames(path, 8))) == 3


def test_the_preview_in_a_phone_photo_is_left_out(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", size, "red") for size in ((40, 20), (10, 5)))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert load_image(tmp_path / "a.jpg").size == (40, 20)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.eps"])
def test_a_picture_starts_no_program(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would run Ghostscript on an EPS file, whatever its name says."""
    called, ghostscript = tmp_path / "called", tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\necho 10.0 > {called}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=":")
    path = tmp_path / name
    path.write_bytes(EPS)
    with pytest.raises(InputError, match="is not an image of a kind that is read here"):
        load_image(path)
    assert not called.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_read(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (32, 32), (250, 0, 0)).save(tmp_path / "a", kind)
    image = load_image(tmp_path / "a")
    assert image.size == (32, 32)
    assert image.convert("L").getpixel((3, 3)) == pytest.approx(75, abs=3)


def test_a_folder_lists_the_formats_that_are_read() -> None:
    suffixes = file_kind(PixelsInput("image", ())).suffixes
    assert {".png", ".jpg", ".jpeg", ".tif", ".webp", ".bmp", ".gif", ".ppm"} <= suffixes
    assert not {".eps", ".ps", ".wmf", ".pdf"} & suffixes


def tiff_with_pages(count: int) -> bytes:
    """Returns a TIFF file whose pages share the pixels of one by one pixel."""
    fields = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*fields, (279, 1)])
    page = struct.pack("<H", 9) + tags
    pages = [
        page + struct.pack("<I", 8 + (n + 1) * (len(page) + 4) if n + 1 < count else 0)
        for n in range(count)
    ]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages)


def test_pages_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes half a minute to count 60,000 pages."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_with_pages(60_000))
    with pytest.raises(InputError, match="holds several pictures"):
        load_image(path)
    monkeypatch.setattr(video_frames, "LARGEST_FRAMES", 100)
    with pytest.raises(InputError, match="holds over 100 frames; cut it into parts"):
        list(load_frames(path, 8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_every_mode_of_a_tiff_file(tmp_path: Path, mode: str, wanted: str) -> None:
    white = Image.new("RGB", (24, 16), "white")
    lab = Image.new("LAB", white.size, (255, 128, 128))
    (lab if mode == "LAB" else white.convert(mode)).save(tmp_path / "a.tif")
    spec = PixelsInput("image", (Resize(8, 8),), mode="L" if wanted == "L" else "RGB")
    pixels = prepare([tmp_path / "a.tif"], spec)["image"]
    assert pixels.min() > 0.98


LINE = ImageInput("image", "L", 32, None, 4, 12, 512, 0, 255, (0.5,), (0.5,))


@pytest.mark.parametrize("size", [(150_000, 1), (1, 150_000), (1_000_000, 1), (1, 1_000_000)])
@pytest.mark.parametrize(
    "spec",
    [
        LINE,
        msgspec.structs.replace(LINE, height=16_000),
        msgspec.structs.replace(LINE, width=4096, max_width=4096),
        PixelsInput("image", ()),
        PixelsInput("image", (ResizeShortestEdge(1000),)),
        PixelsInput("image", (Resize(2000, 2000),)),
        PatchesInput("image", None, 2048, 16, 16),
    ],
)
def test_a_picture_of_extreme_sides_takes_little_ram(
    tmp_path: Path, size: tuple[int, int], spec: Any
) -> None:
    path = tmp_path / "a.png"
    Image.new("L", size, 9).save(path)
    ram = PeakRam()
    with suppress(InputError):
        prepare([path], spec)
    assert ram.growth_bytes() < 900_000_000


def test_a_picture_that_becomes_too_wide_is_refused_before_it_is_resized(tmp_path: Path) -> None:
    Image.new("L", (150_000, 1)).save(tmp_path / "a.png")
    ram = PeakRam()
    with pytest.raises(InputError, match="an image is 4800000 pixels wide at height 32"):
        prepare([tmp_path / "a.png"], LINE)
    assert ram.growth_bytes() < 50_000_000


def test_a_side_has_a_limit(tmp_path: Path) -> None:
    Image.new("L", (200_001, 1)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="has 200001x1 pixels, over 200,000 on a side"):
        load_image(tmp_path / "a.png")


def test_what_the_system_refuses_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", GREY)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert str(caught.value) == (
        f"{path} cannot be read: Permission denied; check the path and its permissions"
    )

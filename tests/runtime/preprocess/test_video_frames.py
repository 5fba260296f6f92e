"""Videos: the frames that are read, and the batches that are made of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from hybrid_deploy.bundle.input_specs import FramesInput, PixelsInput
from hybrid_deploy.bundle.pixel_steps import Resize
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.prepare import file_kind, prepare
from hybrid_deploy.runtime.preprocess.video_frames import evenly_spaced_indices
from tests.benchmarks.reliability.trials import PeakRam

PICTURE = PixelsInput("picture", (Resize(4, 4),), mode="L")
SPEC = FramesInput("video", PICTURE, frames=4, mask="seen")
GREYS = (10, 60, 110, 160, 210, 250)


def write_folder(folder: Path, greys: tuple[int, ...]) -> Path:
    folder.mkdir()
    for number, grey in enumerate(greys):
        Image.new("L", (6, 5), grey).save(folder / f"{number:03d}.png")
    (folder / "notes.txt").write_text("no frame")
    return folder


def write_animation(path: Path, greys: tuple[int, ...]) -> Path:
    first, *rest = (Image.new("L", (6, 5), grey) for grey in greys)
    first.save(path, save_all=True, append_images=rest, lossless=True)
    return path


def greys_of(video: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[int]:
    """Returns the grey level of each frame; all pixels of a frame are equal."""
    return [round(float(frame.mean()) * 255) for frame in video]


@pytest.mark.parametrize("kind", ["folder", "png", "webp"])
def test_frames_at_even_distances(tmp_path: Path, kind: str) -> None:
    paths = [
        write_folder(tmp_path / name, greys)
        if kind == "folder"
        else write_animation(tmp_path / f"{name}.{kind}", greys)
        for name, greys in (("long", GREYS), ("short", GREYS[:2]))
    ]
    batch = prepare(paths, SPEC)
    assert batch["video"].shape == (2, 4, 1, 4, 4)
    assert batch["video"].dtype == np.float32
    assert greys_of(batch["video"][0]) == [GREYS[index] for index in (0, 2, 3, 5)]
    assert greys_of(batch["video"][1]) == [10, 60, 0, 0]
    assert batch["seen"].tolist() == [[1] * 4, [1, 1, 0, 0]]


def test_channels_before_frames(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, channels_first=True, mask=None)
    folder = write_folder(tmp_path / "video", GREYS)
    (video,) = prepare([folder], spec).values()
    assert video.shape == (1, 1, 4, 4, 4)
    np.testing.assert_array_equal(video.swapaxes(1, 2), prepare([folder], SPEC)["video"])


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (5, 1), (7, 3), (8, 8), (9, 8), (1000, 16)])
def test_indices_are_evenly_spaced(count: int, parts: int) -> None:
    indices = evenly_spaced_indices(count, parts)
    assert len(indices) == parts and indices == sorted(set(indices))
    assert 0 <= indices[0] <= count // (2 * parts)
    assert indices[0] + indices[-1] in (count - 1, count)
    if parts > 1:
        assert np.ptp(np.diff(indices)) <= 1


def test_unusable_videos(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures; give a folder with a picture per"):
        prepare([tmp_path / "empty"], SPEC)
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match=r"is a film, .* mkdir film && ffmpeg -i .*film/%06d\.png"):
        prepare([tmp_path / "film.mp4"], SPEC)
    with pytest.raises(InputError, match=r"none\.gif does not exist"):
        prepare([tmp_path / "none.gif"], SPEC)
    path = write_animation(tmp_path / "cut.webp", GREYS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cut\.webp is (a damaged|not an image)"):
        prepare([path], SPEC)


def test_frames_of_unequal_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "video", GREYS[:2])
    Image.new("L", (9, 9)).save(folder / "100.png")
    spec = msgspec.structs.replace(SPEC, picture=PixelsInput("picture", (), mode="L"))
    with pytest.raises(InputError, match=r"pictures of unequal sizes \(5x6 and 9x9"):
        prepare([folder], spec)


def test_videos_in_a_folder_are_found_by_their_suffixes() -> None:
    assert {".gif", ".webp"} <= file_kind(SPEC).suffixes


def test_one_frame_at_a_time_is_held_in_its_full_size(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (5000, 4000)).save(tmp_path / f"{number}.png", compress_level=1)
    ram = PeakRam()
    prepare([tmp_path], FramesInput("video", PixelsInput("frame", (Resize(8, 8),)), 8))
    assert ram.growth_bytes() < 400_000_000

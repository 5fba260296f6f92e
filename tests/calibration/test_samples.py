from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_deploy.calibration.samples import open_samples
from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.manifest import ArrayInput, ImageInput

IMAGE = ImageInput("image", "L", 32, None, 16, 32, 256, 0, 255, (1.0,), (0.5,))
ARRAY = ArrayInput("features")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, width in (("b.png", 40), ("a.jpg", 64)):
        Image.new("L", (width, 32), 128).save(tmp_path / name)
    (tmp_path / "labels.txt").write_text("b 1\n")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_folder_gives_its_images_in_order(folder: Path) -> None:
    samples = open_samples(folder, IMAGE)
    assert len(samples) == 2
    assert [inputs["image"].shape for inputs in samples] == [(1, 1, 32, 64), (1, 1, 32, 48)]
    assert len(list(samples)) == 2, "samples can be gone through again"


def test_arrays_and_mappings(tmp_path: Path) -> None:
    array = np.ones((1, 3), np.float32)
    np.save(tmp_path / "x.npy", array)
    from_file = open_samples([tmp_path / "x.npy"], ARRAY)
    given = open_samples(({"features": array} for _ in range(1)), ARRAY)
    assert from_file.sha256 == given.sha256


def test_hash_depends_on_content(folder: Path) -> None:
    before = open_samples(folder, IMAGE).sha256
    Image.new("L", (40, 32), 127).save(folder / "b.png")
    assert open_samples(folder, IMAGE).sha256 != before


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no calibration samples were given"):
        open_samples([], IMAGE)
    with pytest.raises(CalibrationError, match="holds no images; name a folder"):
        open_samples(tmp_path, IMAGE)
    with pytest.raises(CalibrationError, match=r"holds no \.npy files"):
        open_samples(tmp_path, ARRAY)


def test_unusable_files_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.png does not exist"):
        open_samples([folder / "nowhere.png"], IMAGE)
    (folder / "c.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"c.png is not an image"):
        list(open_samples(folder, IMAGE))

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    ImageInput,
)
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess.image import batch_images, load_image
from hybrid_deploy.runtime.preprocess.prepare import prepare

SPEC = ImageInput("image", "L", 8, None, 4, 12, 64, 0, 255, (1.0,), (0.5,))


def image_batch(images: list[Image.Image], spec: ImageInput) -> NDArray[np.float32]:
    (batch,) = batch_images(images, spec).values()
    return batch


def test_padding_is_background() -> None:
    batch = image_batch([Image.new("L", (5, 8), 0), Image.new("L", (14, 8), 0)], SPEC)
    assert batch.shape == (2, 1, 8, 16)
    assert (batch[0, ..., :5] == -2).all()
    assert (batch[0, ..., 5:] == 0).all()
    assert (batch[1, ..., 14:] == 0).all()


def test_mask_marks_the_columns_of_the_picture() -> None:
    spec = msgspec.structs.replace(SPEC, mask="seen", margin=2)
    images = [Image.new("L", (5, 8), 0), Image.new("L", (13, 8), 0)]
    batch = batch_images(images, spec)
    assert list(batch) == ["image", "seen"]
    assert batch["seen"].tolist() == [[1] * 5 + [0] * 11, [1] * 13 + [0] * 3]


def test_margin_is_background() -> None:
    spec = msgspec.structs.replace(SPEC, margin=5)
    batch = image_batch([Image.new("L", (14, 8), 0)], spec)
    assert batch.shape == (1, 1, 8, 20)
    assert (batch[..., 14:] == 0).all()


def test_narrow_picture_gets_the_minimum_width() -> None:
    assert image_batch([Image.new("L", (1, 8))], SPEC).shape[3] == 12


def test_picture_is_resized_in_proportion() -> None:
    assert image_batch([Image.new("L", (40, 16))], SPEC).shape == (1, 1, 8, 20)


def test_colour_and_transparency() -> None:
    rgb = msgspec.structs.replace(SPEC, mode="RGB", mean=(0.0,) * 3, std=(1.0,) * 3)
    transparent = Image.new("RGBA", (12, 8), (255, 0, 0, 0))
    assert (image_batch([transparent], rgb) == 1).all()  # a transparent pixel shows the background
    red = image_batch([Image.new("RGB", (12, 8), (255, 0, 0))], rgb)
    assert red[0, :, 0, 0].tolist() == [1, 0, 0]


def test_picture_that_is_too_wide_is_refused() -> None:
    with pytest.raises(InputError, match="100 pixels wide at height 8, the model takes 64"):
        image_batch([Image.new("L", (100, 8))], SPEC)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.png does not exist$"):
        load_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="is no file"):
        load_image(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match=r"text\.png is not an image of a kind that is read here"):
        load_image(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"half\.png is a damaged image"):
        load_image(tmp_path / "half.png")


def test_enormous_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="has 20000x6000 pixels, over 100 million"):
        load_image(tmp_path / "huge.png")


def test_arrays_are_read_and_concatenated(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 3), np.float32))
    batch = prepare([tmp_path / "a.npy"] * 2, ArrayInput("features"))
    assert batch["features"].shape == (2, 3)
    (tmp_path / "b.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b\.npy is not a \.npy array"):
        prepare([tmp_path / "b.npy"], ArrayInput("features"))
    with pytest.raises(InputError, match="no input files"):
        prepare([], ArrayInput("features"))

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    ImageInput,
)
from hybrid_deploy.calibration.samples.samples import golden_samples, open_samples, samples_of
from hybrid_deploy.errors import CalibrationError, InputError

IMAGE = ImageInput("image", "L", 32, None, 16, 32, 256, 0, 255, (1.0,), (0.5,))
ARRAY = ArrayInput("features")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, width in (("b.png", 40), ("a.jpg", 64)):
        Image.new("L", (width, 32), 128).save(tmp_path / name)
    (tmp_path / "labels.txt").write_text("b 1\n")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_images_of_a_folder_in_their_order(folder: Path) -> None:
    samples = open_samples(folder, IMAGE)
    assert len(samples) == 2
    assert [inputs["image"].shape for inputs in samples] == [(1, 1, 32, 64), (1, 1, 32, 48)]
    assert len(list(samples)) == 2, "samples can be iterated again"


def test_arrays_and_mappings(tmp_path: Path) -> None:
    array = np.ones((1, 3), np.float32)
    np.save(tmp_path / "x.npy", array)
    from_file = open_samples([tmp_path / "x.npy"], ARRAY)
    from_memory = open_samples(({"features": array} for _ in range(1)), ARRAY)
    assert from_file.sha256 == from_memory.sha256


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
    with pytest.raises(InputError) as caught:
        list(open_samples(folder, IMAGE))
    assert str(caught.value) == (
        f"{folder / 'c.png'} is not an image of a kind that is read here; convert it to PNG or "
        "JPEG; --skip-bad leaves it out"
    )


def test_a_picture_that_is_too_wide_is_named(folder: Path) -> None:
    Image.new("L", (900, 32)).save(folder / "wide.png")
    with pytest.raises(InputError, match=r"wide\.png: an image is 912 pixels wide"):
        list(open_samples(folder, IMAGE))


def test_a_single_file(folder: Path) -> None:
    (only,) = open_samples(str(folder / "a.jpg"), IMAGE)
    assert only["image"].shape == (1, 1, 32, 64)
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        open_samples(folder / "nowhere", IMAGE)
    with pytest.raises(InputError, match=r"is no file"):
        open_samples([folder], IMAGE)


def test_items_that_are_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="the names of the encoder's inputs; got ndarray"):
        open_samples(np.zeros((2, 1, 32, 64)), IMAGE)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    folder = tmp_path / "arrays"
    folder.mkdir()
    for index, width in enumerate((48, 64)):
        np.savez(folder / f"{index}.npz", image=np.ones((2, 1, 32, width), np.float32))
    return folder


def test_arrays_by_the_encoders_input_names(npz: Path, tiny_bundle: Bundle, bundle: Bundle) -> None:
    samples = samples_of(bundle, npz)
    assert [inputs["image"].shape for inputs in samples] == [(2, 1, 32, 48), (2, 1, 32, 64)]
    assert len(samples_of(bundle, npz / "1.npz")) == 1
    with pytest.raises(InputError, match=r"0\.npz: input image must be float batchx1x8xwidth"):
        list(samples_of(tiny_bundle, npz))


def test_files_of_the_models_kind_are_preferred_to_arrays(npz: Path, bundle: Bundle) -> None:
    Image.new("L", (40, 32), 128).save(npz / "a.png")
    assert len(samples_of(bundle, npz)) == 1


def test_golden_samples_come_before_other_samples(npz: Path, tiny_bundle: Bundle) -> None:
    golden = golden_samples(tiny_bundle)
    assert golden == [tiny_bundle.folder / "golden" / "page.png"]
    (only,) = samples_of(tiny_bundle, golden=True)
    arrays = ({"image": np.zeros((1, 1, 8, width), np.float32)} for width in (8, 16))
    both = samples_of(tiny_bundle, arrays, golden=True)
    assert [inputs["image"].shape[3] for inputs in both] == [only["image"].shape[3], 8, 16]


def test_a_bundle_without_golden_samples(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError) as caught:
        samples_of(bundle, golden=True)
    assert str(caught.value) == (f"{bundle.folder} has no golden samples; give --samples FOLDER")


def test_bad_samples_are_left_out_and_named(folder: Path, npz: Path, bundle: Bundle) -> None:
    (folder / "c.png").write_text("text")
    truncated = (folder / "b.png").read_bytes()[:60]
    (folder / "0.png").write_bytes(truncated)
    samples = samples_of(bundle, folder, skip_bad=True)
    assert [Path(bad.name).name for bad in samples.skipped] == ["0.png", "c.png"]
    assert [samples.name_of(index) for index in range(2)] == [
        str(folder / name) for name in ("a.jpg", "b.png")
    ]
    assert "c.png is not an image of a kind that is read here" in samples.skipped[1].reason
    np.savez(npz / "0.npz", image=np.ones(3, np.float32))
    files = [npz / "0.npz", npz / "1.npz", npz / "nowhere.npz"]
    assert len(samples_of(bundle, files, skip_bad=True).skipped) == 2


def test_what_is_no_file_is_named_and_a_link_is_read(folder: Path, bundle: Bundle) -> None:
    (folder / "c.png").symlink_to("b.png")
    os.mkfifo(folder / "d.png")
    (folder / "e.png").symlink_to("nowhere")
    (folder / "f.png").symlink_to("/dev/zero")
    (folder / "g.png").mkdir()
    with pytest.raises(InputError, match=r"d\.png is no file: it is a pipe.*; --skip-bad leaves"):
        list(open_samples(folder, IMAGE))
    samples = samples_of(bundle, folder, skip_bad=True)
    assert [Path(samples.name_of(index)).name for index in range(3)] == ["a.jpg", "b.png", "c.png"]
    assert [Path(bad.name).name[0] for bad in samples.skipped] == list("defg")


def test_whatever_a_reader_raises_is_that_files(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("no such mode")

    monkeypatch.setattr(Image.Image, "resize", fail)
    Image.new("L", (64, 16)).save(folder / "c.png")
    samples = samples_of(bundle, folder, skip_bad=True)
    assert [bad.reason for bad in samples.skipped] == [
        f"{folder / 'c.png'} cannot be prepared: 'no such mode'"
    ]


def test_samples_keep_their_names_after_bad_ones_are_left_out(bundle: Bundle) -> None:
    arrays = [{"image": np.zeros((1, 1, height, 32), np.float32)} for height in (32, 8, 32)]
    samples = samples_of(bundle, iter(arrays), skip_bad=True)
    assert [bad.name for bad in samples.skipped] == ["sample 1"]
    assert samples.name_of(1) == "sample 2"


def test_only_bad_samples_are_an_error(folder: Path, bundle: Bundle) -> None:
    for name in ("a.jpg", "b.png"):
        (folder / name).write_text("text")
    with pytest.raises(CalibrationError) as caught:
        samples_of(bundle, folder, skip_bad=True)
    assert str(caught.value) == (
        f"none of the 2 samples can be used: {folder / 'a.jpg'} is not an image of a kind "
        "that is read here; convert it to PNG or JPEG"
    )

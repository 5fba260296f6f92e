from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.evaluation_set import open_evaluation_set
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import CalibrationError, InputError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = tmp_path / "lines"
    lines.mkdir()
    for name, width in (("a.png", 32), ("b.png", 48), ("c.png", 64)):
        Image.new("L", (width, 32), 128).save(lines / name)
    return lines


def widths(samples: Iterable[Inputs]) -> list[int]:
    return [inputs["image"].shape[-1] for inputs in samples]


def test_folder_with_labels(bundle: Bundle, folder: Path) -> None:
    (folder / "labels.csv").write_text("file,text\nc.png,12\na.png,\n")
    evaluation_set = open_evaluation_set(folder, bundle)
    assert (len(evaluation_set), evaluation_set.labelled_count, evaluation_set.expected_texts) == (
        2,
        2,
        ["12", ""],
    )
    assert widths(evaluation_set) == [64, 32]


def test_bad_files_are_left_out_with_their_texts(bundle: Bundle, folder: Path) -> None:
    (folder / "labels.csv").write_text("file,text\nb.png,7\nc.png,12\na.png,3\n")
    (folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.png"):
        list(open_evaluation_set(folder, bundle))
    evaluation_set = open_evaluation_set(folder, bundle, skip_bad=True)
    assert (evaluation_set.expected_texts, widths(evaluation_set)) == (["7", "3"], [48, 32])
    (skipped,) = evaluation_set.skipped
    assert skipped.name == str(folder / "c.png")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"none of the inputs can be used: .*b\.png"):
        open_evaluation_set(folder, bundle, skip_bad=True)


def test_folder_without_labels(bundle: Bundle, folder: Path) -> None:
    evaluation_set = open_evaluation_set(str(folder), bundle)
    assert (evaluation_set.expected_texts, evaluation_set.labelled_count) == ([None] * 3, 0)
    assert widths(evaluation_set) == [32, 48, 64]
    assert widths(open_evaluation_set(folder / "b.png", bundle)) == [48]


def test_files_arrays_and_pairs(bundle: Bundle, folder: Path, images: list[Inputs]) -> None:
    source: list[Path | Inputs | tuple[Path | str | Inputs, str | None]]
    source = [(folder / "c.png", "12"), images[1], (images[0], "3"), (str(folder / "a.png"), None)]
    evaluation_set = open_evaluation_set(iter(source), bundle)
    assert evaluation_set.expected_texts == ["12", None, "3", None]
    assert evaluation_set.labelled_count == 2
    assert widths(evaluation_set) == [64, 48, 32, 32]


def test_golden_samples_have_no_true_text(tiny_bundle: Bundle) -> None:
    evaluation_set = open_evaluation_set(None, tiny_bundle)
    assert evaluation_set.expected_texts == [None]
    assert widths(evaluation_set) == [20]


def test_the_example_without_any_samples(bundle: Bundle) -> None:
    evaluation_set = open_evaluation_set(None, bundle)
    (inputs,) = evaluation_set
    assert evaluation_set.stand_in == "the example of the export"
    assert inputs["image"].any()


def test_zeros_without_samples_and_example(bundle: Bundle) -> None:
    bare = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, golden=()))
    evaluation_set = open_evaluation_set(None, bare)
    (inputs,) = evaluation_set
    assert evaluation_set.stand_in == "an input of zeros"
    assert inputs["image"].shape == (1, 1, 32, 64)
    assert not inputs["image"].any()


def test_evenly_spaced(bundle: Bundle) -> None:
    source = [({"image": np.zeros((1, 1, 32, 32 + i), np.float32)}, str(i)) for i in range(10)]
    evaluation_set = open_evaluation_set(source, bundle).evenly_spaced(4)
    assert (len(evaluation_set), evaluation_set.expected_texts) == (4, ["0", "2", "5", "7"])
    assert widths(evaluation_set) == [32, 34, 37, 39]
    assert evaluation_set.evenly_spaced(4) is evaluation_set


def test_texts_need_a_vocabulary(bundle: Bundle, images: list[Inputs]) -> None:
    without_vocabulary = Bundle(
        bundle.folder, msgspec.structs.replace(bundle.manifest, vocabulary=None)
    )
    assert len(open_evaluation_set(images, without_vocabulary)) == 3
    with pytest.raises(UsageError) as caught:
        open_evaluation_set([(images[0], "1")], without_vocabulary)
    assert str(caught.value) == (
        f"the samples have true texts, but {bundle.folder} has no vocabulary to write its tokens "
        "as text; leave the texts out, or export it with a vocabulary"
    )


def test_wrong_sources(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(CalibrationError, match="give at least one"):
        open_evaluation_set([], bundle)
    with pytest.raises(InputError, match=r"d\.png does not exist"):
        open_evaluation_set([(folder / "d.png", "1")], bundle)
    (folder / "labels.csv").write_text("file,text\nd.png,1\n")
    with pytest.raises(InputError, match="names 1 of 1 files that are missing or no files"):
        open_evaluation_set(folder, bundle)

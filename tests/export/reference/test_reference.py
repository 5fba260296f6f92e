"""Tests the reference model: its lines, its shapes, its training and its shipped weights."""

from __future__ import annotations

import builtins
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from hybrid_deploy.errors import InputError, MissingDependencyError
from hybrid_deploy.export.reference import train
from hybrid_deploy.export.reference.evaluate import read_lines, score_lines
from hybrid_deploy.export.reference.lines import (
    SPLITS,
    Split,
    batch_images,
    compose_lines,
    load_scans,
)
from hybrid_deploy.export.reference.model import FORMS, DigitReader, EncoderForm, load_reference
from hybrid_deploy.export.reference.schedule import Schedule
from hybrid_deploy.export.reference.vocabulary import (
    END,
    MAX_LENGTH,
    START,
    VOCABULARY,
    text_from_tokens,
    tokens_from_text,
)
from tests.closeness import assert_close_in_float32

SIX_COLUMNS_PX = 48


def untrained(form: EncoderForm) -> DigitReader:
    torch.manual_seed(0)
    return DigitReader(form).eval()


def test_the_splits_are_disjoint_and_hold_every_scan() -> None:
    indices = [load_scans(split).indices for split in SPLITS]
    assert [len(part) for part in indices] == [1400, 397]
    assert sorted(np.concatenate(indices)) == list(range(1797))


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_holds_every_digit_about_equally_often(split: Split) -> None:
    counts = np.bincount(load_scans(split).digits)
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 0.1 * counts.sum() / 10 + 1


def test_the_same_seed_composes_the_same_lines() -> None:
    first, again = compose_lines("test", 5, seed=3), compose_lines("test", 5, seed=3)
    for line, same_line in zip(first, again, strict=True):
        assert line.text == same_line.text
        np.testing.assert_array_equal(line.image, same_line.image)


def test_another_seed_or_split_composes_other_lines() -> None:
    texts = [line.text for line in compose_lines("test", 5, seed=3)]
    assert texts != [line.text for line in compose_lines("test", 5, seed=4)]
    assert texts != [line.text for line in compose_lines("train", 5, seed=3)]


def test_lines_are_dark_on_white_and_one_to_ten_digits_long() -> None:
    lines = compose_lines("train", 200, seed=0)
    assert {len(line.text) for line in lines} == set(range(1, 11))
    for line in lines:
        assert line.image.dtype == np.uint8
        assert line.image.shape[0] == 32
        assert np.median(line.image[:, :2]) > 200
        assert line.image.min() < 160


def test_lines_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_sklearn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    load_scans.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(MissingDependencyError) as caught:
        compose_lines("test", 1, seed=0)
    assert str(caught.value) == (
        "scikit-learn is not installed; install it with: pip install 'hybrid-deploy[reference]'"
    )


@pytest.mark.parametrize(("width", "padded"), [(5, 32), (32, 32), (33, 48), (160, 160)])
def test_batches_are_padded_to_sixteen(width: int, padded: int) -> None:
    assert batch_images([np.zeros((32, width), dtype=np.uint8)]).shape == (1, 1, 32, padded)


def test_batches_hold_paper_as_zero_and_ink_as_minus_two() -> None:
    narrow, wide = np.full((32, 20), 0, np.uint8), np.full((32, 64), 255, np.uint8)
    batch = batch_images([narrow, wide])
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0, 0, :, :20], -2)
    np.testing.assert_array_equal(batch[0, 0, :, 20:], 0)
    np.testing.assert_array_equal(batch[1], 0)


def test_text_becomes_tokens_and_text_again() -> None:
    assert len(VOCABULARY) == 13
    assert tokens_from_text("07") == [START, 3, 10, END]
    assert text_from_tokens([START, 3, 10, END, 5]) == "07"
    with pytest.raises(ValueError, match="expected only the digits 0-9, got 'x' in '1x'"):
        tokens_from_text("1x")


@pytest.mark.parametrize(("form", "columns"), [("feature-map", 6), ("pooled", 1)])
def test_memory_and_logits_have_the_documented_shapes(form: EncoderForm, columns: int) -> None:
    model = untrained(form)
    image = torch.zeros(2, 1, 32, SIX_COLUMNS_PX)
    assert model.encode(image).shape == (2, columns, 96)
    assert model(image, torch.full((2, MAX_LENGTH), START)).shape == (2, MAX_LENGTH, 13)


@pytest.mark.parametrize("form", FORMS)
def test_later_tokens_never_change_earlier_logits(form: EncoderForm) -> None:
    model = untrained(form)
    memory = model.encode(torch.randn(1, 1, 32, SIX_COLUMNS_PX))
    tokens = torch.tensor([[START, 5, 6, 7, 8]])
    changed = tokens.clone()
    changed[0, 3:] = 11
    before, after = model.decode(tokens, memory), model.decode(changed, memory)
    # both add the same numbers in the same order, so the logits are exactly equal
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=0)
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("form", FORMS)
def test_the_model_exports_with_a_dynamic_batch_and_width(form: EncoderForm) -> None:
    model = untrained(form)
    batch, columns = torch.export.Dim("batch", max=64), torch.export.Dim("blocks", max=128)
    length = torch.export.Dim("length", min=2, max=MAX_LENGTH)
    exported = torch.export.export(
        model,
        (torch.randn(2, 1, 32, 64), torch.full((2, 5), 7)),
        dynamic_shapes=({0: batch, 3: 16 * columns}, {0: batch, 1: length}),
    )
    image, tokens = torch.randn(3, 1, 32, 96), torch.full((3, 4), 4)
    # export may fuse and reorder float32 sums
    assert_close_in_float32(exported.module()(image, tokens), model(image, tokens))


@pytest.mark.parametrize(("form", "worst"), [("feature-map", 0.05), ("pooled", 0.3)])
def test_the_shipped_weights_read_held_out_lines(form: str, worst: float) -> None:
    scores = score_lines(load_reference(form), compose_lines("test", 20, seed=1))
    assert scores.lines == 20
    assert scores.character_error_rate <= worst


@pytest.mark.parametrize("extra_px", [16, 160])
def test_reading_does_not_depend_on_white_padding(extra_px: int) -> None:
    model = load_reference("feature-map")
    images = [line.image for line in compose_lines("test", 12, seed=2)]
    padded = [np.pad(image, ((0, 0), (0, extra_px)), constant_values=255) for image in images]
    assert read_lines(model, padded) == read_lines(model, images)


def test_both_weight_files_stay_under_three_megabytes() -> None:
    folder = resources.files("hybrid_deploy.export.reference")
    weights = [folder.joinpath(f"digits-{form}.safetensors").read_bytes() for form in FORMS]
    assert sum(map(len, weights)) <= 3_000_000


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        load_reference("fast")
    assert str(caught.value) == "expected a reference form of feature-map or pooled, got 'fast'"


def test_training_ends_with_a_score_and_a_file(tmp_path: Path) -> None:
    arguments = ["--form", "feature-map", "--out", str(tmp_path), "--steps", "2"]
    arguments += ["--test-lines", "2"]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("feature-map: CER ")
    assert "on 2 test lines" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["digits-feature-map.safetensors"]
    DigitReader("feature-map").load_state_dict(load_file(next(tmp_path.iterdir())))


def test_the_schedule_warms_up_cools_down_and_grows_the_lines() -> None:
    schedule = Schedule(steps=100, seconds_limit=None)
    rates, longest = [], []
    for _ in range(100):
        rates.append(schedule.learning_rate)
        longest.append(schedule.longest_line)
        schedule.advance()
    peak = rates.index(max(rates))
    assert 0 < peak < 20
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert (longest[0], longest[-1]) == (3, 10)
    assert schedule.done == 1.0

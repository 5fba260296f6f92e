"""Tests the accuracy and the size of the shipped weights of both readers."""

from __future__ import annotations

import pytest

from hybrid_deploy.export.reference.evaluate import score_lines
from hybrid_deploy.export.reference.lines import compose_lines
from tests.models.readers.models import FORMS, ReaderForm, load_reader, weights_path


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_read_held_out_lines(form: ReaderForm) -> None:
    scores = score_lines(load_reader(form), compose_lines("test", 20, seed=1))
    assert scores.lines == 20
    assert scores.character_error_rate < 0.05


def test_both_weight_files_stay_under_ten_megabytes() -> None:
    assert sum(weights_path(form).stat().st_size for form in FORMS) <= 10_000_000

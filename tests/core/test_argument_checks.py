from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_deploy.argument_checks import (
    check_integer,
    check_text,
    is_number,
    path_of,
    paths_of,
    texts_of,
    token_ids_of,
)
from hybrid_deploy.errors import InputError, UsageError


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 9, np.array(3), b"3"])
def test_what_is_no_whole_number_from_1_to_8(value: Any) -> None:
    with pytest.raises(UsageError, match="beams must be a whole number from 1 to 8, got"):
        check_integer("beams", value, 1, 8)


def test_whole_numbers() -> None:
    for value in (1, 8, np.int64(3), np.uint8(8)):
        check_integer("beams", value, 1, 8)
    check_integer("beams", 10**9, 0)


def test_numbers() -> None:
    assert all(map(is_number, (1, 0.5, np.float32(2), -(10**9))))
    assert not any(map(is_number, (True, "1", None, 10**400, float("nan"), np.array(1.0), 2j)))


def test_paths() -> None:
    assert paths_of(["a", Path("b")]) == [Path("a"), Path("b")]
    assert path_of("\udcff.png") == Path("\udcff.png")  # a name that is no UTF-8
    for wrong in (None, 3, b"a", "a\0b", "\ud800"):
        with pytest.raises(InputError, match="a path was expected, got"):
            path_of(wrong)  # type: ignore[arg-type]
    for single in ("page.png", Path("page.png"), None, 3):
        with pytest.raises(UsageError, match="a list of paths were expected, got"):
            paths_of(single)  # type: ignore[arg-type]


def test_token_ids_of_lists_and_arrays() -> None:
    assert token_ids_of("it", np.array([1, 2], np.uint8)) == (1, 2)
    assert token_ids_of("it", range(2)) == (0, 1)
    for wrong in ("12", 3, [1.5], [-1], [True], np.array([[1]]), [None]):
        with pytest.raises(UsageError, match="token"):
            token_ids_of("it", wrong)  # type: ignore[arg-type]


def test_texts() -> None:
    assert texts_of(["a"]) == ["a"]
    for wrong in ("a", [3], ["\ud800"]):
        with pytest.raises(UsageError):
            texts_of(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name is not Unicode"):
        check_text("name", "\udcff")

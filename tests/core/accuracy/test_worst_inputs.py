import pytest

from hybrid_deploy.accuracy.error_rates import compare_exactly, compare_texts
from hybrid_deploy.accuracy.normalizers import load_normalizer
from hybrid_deploy.accuracy.worst_inputs import WorstInput, worst_inputs

TRUE = ["aaaa", "bbbb", "cccc", "dddd", "eeee"]
FLOAT = ["aaaa", "xxxx", "cccc", "dxdd", "eeee"]
VARIANT = ["axaa", "xxxx", "xxcc", "dddd", "xxee"]


def test_the_largest_loss_against_float_comes_first() -> None:
    losses = worst_inputs(compare_texts(TRUE, VARIANT), compare_texts(TRUE, FLOAT), 5)
    # the second is as bad in float, and the fourth is better
    assert losses == [WorstInput(2, 2, 2), WorstInput(4, 2, 2), WorstInput(0, 1, 1)]


def test_without_a_reference_every_error_is_a_loss() -> None:
    losses = worst_inputs(compare_texts(TRUE, FLOAT), None, 5)
    assert losses == [WorstInput(1, 4, 4), WorstInput(3, 1, 1)]


def test_of_equal_losses_the_text_with_more_errors_is_worse() -> None:
    true, reference = ["aaaa", "bbbb"], ["aaaa", "xbbb"]
    losses = worst_inputs(compare_texts(true, ["xaaa", "xxbb"]), compare_texts(true, reference), 5)
    assert [loss.index for loss in losses] == [1, 0]


@pytest.mark.parametrize(("most", "count"), [(0, 0), (1, 1), (9, 3)])
def test_at_most_so_many(most: int, count: int) -> None:
    losses = worst_inputs(compare_texts(TRUE, VARIANT), compare_texts(TRUE, FLOAT), most)
    assert len(losses) == count


def test_losses_are_those_of_normalised_texts() -> None:
    basic = load_normalizer("basic")
    assert worst_inputs(compare_texts(["one, two"], ["One two!"], basic), None, 5) == []
    assert worst_inputs(compare_texts(["one, two"], ["One two!"]), None, 5) != []


def test_without_characters_there_are_no_losses() -> None:
    assert worst_inputs(compare_exactly(TRUE, VARIANT), None, 5) == []

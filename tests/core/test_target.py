import pytest

from hybrid_deploy.errors import UsageError
from hybrid_deploy.target import TARGETS, Flavour, Target, parse_target


def test_named_gpu() -> None:
    target = parse_target("rtx:sm_86")
    assert target == Target(Flavour.RTX, "sm_86")
    assert target.capability == "86"
    assert not target.is_local


@pytest.mark.parametrize(("text", "is_local"), [("rtx:any", False), ("local", True)])
def test_targets_without_a_capability(text: str, is_local: bool) -> None:
    target = parse_target(text)
    assert target.capability is None
    assert target.is_local is is_local


def test_local_leaves_the_flavour_open() -> None:
    assert parse_target("local").flavour is None


@pytest.mark.parametrize("name", TARGETS)
def test_name_survives_parsing(name: str) -> None:
    assert str(parse_target(name)) == name


def test_case_and_spaces_do_not_matter() -> None:
    assert parse_target(" RTX:SM_89 ") == parse_target("rtx:sm_89")


@pytest.mark.parametrize("text", ["", "sm_86", "rtx:sm_87", "rtx:", "cuda"])
def test_unknown_target_lists_the_valid_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert str(caught.value) == (
        f"unknown target {text!r}; valid targets: rtx:sm_75, rtx:sm_80, rtx:sm_86, rtx:sm_89, "
        "rtx:sm_120, rtx:sm_121, rtx:any, local"
    )
    assert caught.value.exit_code == 2

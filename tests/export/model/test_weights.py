"""Tests the loading of weights, and the message for each file that does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hybrid_deploy.errors import InputError
from hybrid_deploy.export.model.weights import load_weights


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def state_of_sevens(model: nn.Module) -> dict[str, Tensor]:
    """Returns a state of the model in which every number is 7."""
    return {name: torch.full_like(value, 7) for name, value in model.state_dict().items()}


def assert_loaded(model: nn.Module) -> None:
    """Asserts that every number of the model is 7."""
    assert all(bool((value == 7).all()) for value in model.state_dict().values())


def test_a_safetensors_file_is_loaded(model: nn.Module, tmp_path: Path) -> None:
    save_file(state_of_sevens(model), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert_loaded(model)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_files_of_torch_save_are_loaded(
    model: nn.Module, tmp_path: Path, wrapper: str | None, suffix: str
) -> None:
    state = state_of_sevens(model)
    content: Any = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(content, tmp_path / f"w{suffix}")
    load_weights(model, tmp_path / f"w{suffix}")
    assert_loaded(model)


@pytest.mark.parametrize(
    ("others", "remarks"),
    [
        ({"optimizer": {"state": {}, "lr": 0.1}, "epoch": 3}, 0),
        ({"ema": {"0.weight": torch.zeros(4, 3)}}, 1),
    ],
)
def test_other_weights_of_a_checkpoint_are_told(
    model: nn.Module, tmp_path: Path, others: dict[str, Any], remarks: int
) -> None:
    torch.save({"model": state_of_sevens(model), **others}, tmp_path / "w.pt")
    told = load_weights(model, tmp_path / "w.pt")
    assert_loaded(model)
    assert len(told) == remarks
    assert all("loaded the weights under 'model'; it also holds 'ema'" in text for text in told)


def test_the_prefix_of_distributed_training_is_removed(model: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in state_of_sevens(model).items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert_loaded(model)


def refusal(model: nn.Module, path: Path) -> str:
    """Returns the message of a refused file without its path; the weights must not change."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, path)
    assert all(bool((before[name] == value).all()) for name, value in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_pickled_model_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "w.pt")
    assert refusal(model, tmp_path / "w.pt") == (
        " holds Python objects, which can run code when they are read; convert it where you trust "
        "it: torch.save(torch.load(file, weights_only=False).state_dict(), 'weights.pt')"
    )


def test_names_and_shapes_that_do_not_fit_are_refused(model: nn.Module, tmp_path: Path) -> None:
    state = state_of_sevens(model)
    state["0.weight"] = torch.zeros(5, 3)
    state["head.bias"] = state.pop("1.bias")
    save_file(state, tmp_path / "w.safetensors")
    assert refusal(model, tmp_path / "w.safetensors") == (
        " does not fit Sequential: missing 1.bias; unexpected head.bias; "
        "wrong shape: 0.weight of (5, 3) where the model has (4, 3)"
    )


def test_only_the_first_names_are_listed(model: nn.Module, tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pt")
    assert refusal(model, tmp_path / "w.pt") == (
        " does not fit Sequential: missing 0.weight, 0.bias, 1.weight and 1 more; unexpected other"
    )


def test_content_other_than_weights_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save({**state_of_sevens(model), "epoch": 3}, tmp_path / "w.pt")
    assert refusal(model, tmp_path / "w.pt") == (
        " holds 'epoch' of type int, where only weights by name were expected; "
        "save model.state_dict() alone"
    )
    torch.save([torch.zeros(1)], tmp_path / "w.pt")
    assert refusal(model, tmp_path / "w.pt") == " holds a list, weights by name were expected"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 not a zip"])
def test_damaged_files_are_refused(model: nn.Module, tmp_path: Path, content: bytes) -> None:
    for name, message_part in {"w.pt": "", "w.safetensors": " is not a safetensors file"}.items():
        (tmp_path / name).write_bytes(content)
        assert message_part in refusal(model, tmp_path / name)


def test_missing_files_and_other_suffixes_are_refused(model: nn.Module, tmp_path: Path) -> None:
    assert refusal(model, tmp_path / "no.pt") == " does not exist"
    (tmp_path / "w.h5").write_bytes(b"")
    message = refusal(model, tmp_path / "w.h5")
    assert re.fullmatch(r" must end in \.safetensors, \.pt or \.pth", message)


@pytest.mark.parametrize(
    "change",
    [
        {1: torch.zeros(1)},
        {None: torch.zeros(1)},
        {"x" * 100_000: torch.zeros(1)},
        {"0.weight": torch.zeros(4, 3).to_sparse()},
        {"0.weight": torch.zeros(4, 3, device="meta")},
    ],
)
def test_odd_names_and_weights_are_refused_in_a_short_line(
    model: nn.Module, tmp_path: Path, change: dict[Any, Tensor]
) -> None:
    torch.save(model.state_dict() | change, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt (holds|does not fit)") as caught:
        load_weights(model, tmp_path / "w.pt")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500

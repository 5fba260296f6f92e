"""What `hybrid-deploy export` answers to a factory or an example in another form than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from hybrid_deploy.cli import main
from hybrid_deploy.cli.options.export_job import load_job
from hybrid_deploy.cli.options.model import ModelOptions
from tests.conftest import TinyReader

FACTORIES = """
import sys
from conftest import TinyReader
made = TinyReader()
def leaves(): sys.exit(3)
def leaves_with_words(): raise SystemExit("no weights")
"""


@pytest.fixture(autouse=True)
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factories_of_requests.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save("line.npy", np.zeros((1, 1, 8, 32), np.float32))
    np.save("alone.npy", np.zeros((1, 8, 32), np.float32))
    Image.fromarray(np.zeros((8, 32, 3), np.uint8)).save("colours.png")


def export(model: str, example: str) -> Result:
    arguments = ["--example", example, "--max-length", "8", "--start", "1", "-o", "out"]
    return CliRunner().invoke(main, ["export", model, *arguments])


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        ("./factories_of_requests:made", "line.npy", "write factories_of_requests:made"),
        ("factories_of_requests.py:made", "line.npy", "write factories_of_requests:made"),
        ("/a/b.py:made", "line.npy", "write b:made"),
        (
            "factories_of_requests:leaves",
            "line.npy",
            "factories_of_requests.py:5: factories_of_requests:leaves ends the program by "
            "sys.exit(3); a function",
        ),
        ("factories_of_requests:leaves_with_words", "line.npy", "by sys.exit('no weights'); a"),
        (
            "conftest:TinyReader",
            "colours.png",
            "encode() fails for colours.png with its own channels, and works in mode L; give "
            "--mode L",
        ),
        (
            "conftest:TinyReader",
            "alone.npy",
            "alone.npy holds image (1, 8, 32) without an axis of the batch; save it batch first",
        ),
    ],
)
def test_a_request_in_another_form_is_told_the_form(model: str, example: str, words: str) -> None:
    result = export(model, example)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_module_itself_is_taken_in_place_of_a_factory() -> None:
    options: dict[str, Any] = {"example": Path("line.npy"), "max_length": 8, "start": (1,)}
    job = load_job("factories_of_requests:made", ModelOptions(**options))
    assert type(job.model).__name__ == TinyReader.__name__
    assert not job.model.training
    assert torch.equal(job.example["image"], torch.zeros(1, 1, 8, 32))

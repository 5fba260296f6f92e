import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hybrid_deploy.bundle import Bundle
from hybrid_deploy.cli.quantize import quantize
from hybrid_deploy.errors import UsageError


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    folder = tmp_path / "lines"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, width in enumerate((40, 64)):
        pixels = rng.integers(0, 256, (32, width), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_one_line_on_stdout(bundle: Bundle, lines: Path) -> None:
    arguments = [str(bundle.folder), "--precision", "int8", "--samples", str(lines)]
    result = CliRunner().invoke(quantize, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.startswith("int8: ")
    assert result.stdout.endswith("of 12 tokens as in float\n")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_json_record(bundle: Bundle) -> None:
    arguments = [str(bundle.folder), "--precision", "fp16", "--format", "json"]
    result = CliRunner().invoke(quantize, arguments, catch_exceptions=False)
    record = json.loads(result.stdout)
    assert (record["variant"], record["sequences"]) == ("fp16", 1)


def test_errors_are_left_to_the_top(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="give --samples FOLDER"):
        CliRunner().invoke(
            quantize, [str(bundle.folder), "--precision", "int8"], catch_exceptions=False
        )

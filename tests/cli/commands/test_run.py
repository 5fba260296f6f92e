"""`run`, `profile`, `verify`, `inspect` and `compare`: what they print."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.contract import GraphRole
from tests.closeness import float32_error

WITHOUT_THE_TOOLKIT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        toolkit = {"torch", "onnx", "onnx_ir", "onnxscript", "sklearn", "transformers"}
        if name.split(".")[0] in toolkit:
            raise ImportError(f"{name} must not be imported on a device")

sys.meta_path.insert(0, Blocked())
from hybrid_deploy.cli import main
main(sys.argv[1:])
"""


def output(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_run_prints_the_text_of_each_file(tiny_path: Path, tiny_bundle: Bundle, page: Path) -> None:
    (sample,) = tiny_bundle.manifest.golden
    golden = tiny_path / sample.file
    first, _, last = output("run", tiny_path, golden, page, golden).splitlines()
    assert first == last == sample.text


@pytest.mark.parametrize(
    ("options", "text"),
    [((), "\n"), (("--stream",), "\n"), (("--beams", 3, "--n-best", 2), "-\t\n")],
)
def test_run_says_that_a_text_is_incomplete(
    options: tuple[object, ...], text: str, tiny_path: Path, page: Path
) -> None:
    arguments = ["run", tiny_path, page, "--timeout", 1e-9, *options]
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, text)
    assert result.stderr == f"{page}: ended early (timeout): the text may be incomplete\n"


def test_run_json(tiny_path: Path, page: Path) -> None:
    (record,) = json.loads(output("run", tiny_path, page, "--format", "json"))
    assert record["file"] == str(page)
    assert "scores" not in record
    assert len(record["tokens"]) == len(record["step_ms"]) + 1
    assert record["finish"] in ("end", "length")
    assert record["total_ms"] > record["encoder_ms"] > 0


def test_run_needs_neither_torch_nor_onnx(tiny_path: Path, tiny_bundle: Bundle) -> None:
    (sample,) = tiny_bundle.manifest.golden
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_TOOLKIT, "run", tiny_path, tiny_path / sample.file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.stdout, process.stderr) == (f"{sample.text}\n", "")


@pytest.mark.parametrize("output_format", ["table", "md", "csv", "json"])
def test_profile(tiny_path: Path, page: Path, output_format: str) -> None:
    text = output("profile", tiny_path, page, "--runs", 3, "--format", output_format)
    for stage in ("preprocess", "encoder", "first token", "next token", "total"):
        assert stage in text


def test_profile_json_holds_everything(tiny_path: Path, page: Path) -> None:
    record = json.loads(output("profile", tiny_path, page, "--runs", 3, "--format", "json"))
    assert [stage["count"] for stage in record["stages"]][:2] == [3, 3]
    assert record["tokens_per_s"] > 0
    assert record["peak_rss_mb"] > 10


def test_a_variant_that_cannot_run_here_does_not_stop_the_others(own_path: Path) -> None:
    quantize_bundle(own_path, "bf16")
    rows = json.loads(output("verify", own_path, "--format", "json"))
    assert [row["verdict"].split(":")[0] for row in rows] == ["ok", "not run"]


def test_verify(tiny_path: Path) -> None:
    (row,) = json.loads(output("verify", tiny_path, "--format", "json"))
    assert row == {"variant": "fp32", "samples": 1, "tokens": 7, "equal": 1, "verdict": "ok"}


def test_inspect(tiny_path: Path) -> None:
    text = output("inspect", tiny_path)
    assert text.startswith("tiny: 5,")
    assert "batch x 2 x memory x 8" in text
    assert json.loads(output("inspect", tiny_path, "--format", "json"))["name"] == "tiny"


def test_compare_measures_against_the_labels(tiny_path: Path, page: Path) -> None:
    text = output("run", tiny_path, page).strip()
    shutil.copy(page, page.parent / "same.png")
    (page.parent / "labels.csv").write_text(f"file,text\npage.png,{text}\nsame.png,{text}h\n")
    (row,) = json.loads(output("compare", tiny_path, "--samples", page.parent, "--format", "json"))
    assert (row["status"], row["exact_percent"]) == ("ok", 50.0)
    assert 0 < row["cer_percent"] < 50


def test_compare_counts_word_errors_where_labels_have_words(tiny_path: Path, page: Path) -> None:
    (page.parent / "labels.csv").write_text("file,text\npage.png,two words\n")
    (row,) = json.loads(output("compare", tiny_path, "--samples", page.parent, "--format", "json"))
    assert row["wer_percent"] == 100
    (page.parent / "labels.csv").write_text("file,text\npage.png,one\n")
    assert "WER" not in output("compare", tiny_path, "--samples", page.parent)


def test_export_in_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    text = output("export", "conftest:job", "-o", tmp_path / "out.bundle")
    assert "4 inputs" in text
    assert "tokens identical to the model" in text
    assert [path.name for path in tmp_path.iterdir()] == ["out.bundle"]


def test_inspect_shows_what_a_call_costs(tiny_path: Path, tiny_bundle: Bundle) -> None:
    text = output("inspect", tiny_path)
    assert "Cost of one call with batch 1, length 1, width 24, memory 6:" in text
    assert "fp32     fp32     fp32     logits     24" in text
    cost = tiny_bundle.graph("fp32", GraphRole.STEP).cost
    assert cost is not None
    (row,) = (line.split() for line in text.splitlines() if line.startswith("fp32     step"))
    assert row[2:5] == [
        f"{cost.flops / 1e6:.3f}",
        f"{cost.read_bytes / 1e6:.3f}",
        f"{cost.weight_bytes / 1e6:.3f}",
    ]


def test_run_beams_and_their_scores(tiny_path: Path, page: Path) -> None:
    (record,) = json.loads(
        output(
            "run", tiny_path, page, "--format", "json", "--beams", 3, "--n-best", 3, "--scores",
            "--length-penalty", 0,
        )
    )  # fmt: skip
    assert len(record["scores"]) == len(record["tokens"])
    # log-probabilities have one sign: nothing cancels, so the error is a share of the sum
    assert record["total"] == pytest.approx(sum(record["scores"]), rel=float32_error(1.0))
    assert len(record["others"]) == 2
    lines = output("run", tiny_path, page, "--beams", 3, "--n-best", 3, "--length-penalty", 0)
    totals, texts = zip(*(line.split("\t") for line in lines.splitlines()), strict=True)
    assert texts == (record["text"], *(other["text"] for other in record["others"]))
    assert totals[0] == f"{record['total']:.4f}"


def test_run_draws_stops_and_matches(tiny_path: Path, page: Path) -> None:
    draw = ("run", tiny_path, page, "--temperature", 4, "--seed", 3, "--top-k", 9)
    assert output(*draw) == output(*draw)
    text = output("run", tiny_path, page).strip()
    assert output("run", tiny_path, page, "--stop", text[1]).strip() == text.partition(text[1])[0]
    matched = output("run", tiny_path, page, "--pattern", "[ab]{2}c").strip()
    assert matched in ("aac", "abc", "bac", "bbc")
    (record,) = json.loads(
        output("run", tiny_path, page, "--max-tokens", 2, "--timeout", 60, "--format", "json")
    )
    assert (len(record["tokens"]), record["finish"]) == (2, "length")


def test_run_stream(tiny_path: Path, page: Path) -> None:
    plain = output("run", tiny_path, page, page)
    assert output("run", tiny_path, page, page, "--stream") == plain


def test_run_goes_on_after_a_file_that_fails(tiny_path: Path, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    result = CliRunner().invoke(main, ["run", str(tiny_path), str(bad), str(page)])
    assert result.exit_code == 1
    assert result.stdout == output("run", tiny_path, page)
    first, last = result.stderr.splitlines()
    reason = f"{bad} is not an image of a kind that is read here; convert it to PNG or JPEG"
    assert first == f"{bad}: {reason}"
    assert last == "error: 1 of 2 inputs failed; see the lines above"
    alone = CliRunner().invoke(main, ["run", str(tiny_path), str(bad)])
    assert (alone.exit_code, alone.stderr) == (
        2,
        f"error: {reason}\n",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beams", "0"), "error: beams must be a whole number from 1 to 256, got 0"),
        (("--n-best", "2"), "error: the 2 best sequences need as many beams, there are 1"),
        (("--stream", "--beams", "2"), "error: the tokens of a beam search are known at its end"),
        (("--stream", "--format", "json"), "error: --stream prints text as it comes"),
        (("--long", "--text", "a"), "error: --long, --timestamps and subtitles take sound files"),
        (("--long",), "does not take sound alone"),
        (("--pattern", "("), "error: '(' is not a regular expression"),
        (("--seed", "1"), "error: a seed without sampling has no effect"),
    ],
)
def test_run_refuses_what_does_not_go_together(
    tiny_path: Path, page: Path, options: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(main, ["run", str(tiny_path), str(page), *options])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_a_bundle_below_a_path_that_is_no_utf8(own_path: Path, page: Path) -> None:
    bundle = own_path.rename(own_path.with_name(os.fsdecode(b"\xff\xfe.bundle")))
    for command in (
        ("quantize", bundle, "--precision", "fp16"),
        ("run", bundle, page),
        ("run", bundle, page, "--variant", "fp16"),
    ):
        result = CliRunner().invoke(main, list(map(str, command)))
        assert result.exit_code == 0, result.output

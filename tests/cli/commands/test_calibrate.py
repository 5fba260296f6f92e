"""`hybrid-deploy calibrate`: its output, its refusals, and how it resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.statistics.scales import check_scales, read_scales
from hybrid_deploy.calibration.statistics.tensor_statistics import TensorStatistics
from hybrid_deploy.cli import main

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def run(bundle: Bundle) -> Run:
    def invoke(*options: object) -> Result:
        return CliRunner().invoke(main, ["calibrate", *map(str, (bundle.folder, *options))])

    return invoke


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    folder = tmp_path / "lines"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, width in enumerate((40, 64, 50, 33)):
        pixels = rng.integers(0, 256, (32, width), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_scales_and_one_line(run: Run, bundle: Bundle, lines: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "scales.json"
    result = run("--samples", lines, "-o", output)
    scales = read_scales(output)
    tensors = sum(len(ranges) for ranges in scales.ranges.values())
    # two start tokens of at most 8: one prefill and 5 steps for each sample
    assert result.stdout == f"{output}: minmax over 4 samples and 24 steps, {tensors} tensors\n"
    assert (result.exit_code, result.stderr) == (0, "")
    check_scales(scales, bundle, "fp32")


def test_merged_shards_write_the_same_bytes_as_one_run(
    run: Run, lines: Path, tmp_path: Path
) -> None:
    parts = [tmp_path / f"part{number}.npz" for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        result = run("--samples", lines, "--shard", f"{number}/3", "-o", part)
        assert result.stdout.startswith(f"{part}: observations over {2 if number == 1 else 1} ")
    merged, at_once = tmp_path / "merged.json", tmp_path / "at_once.json"
    files = [option for part in reversed(parts) for option in ("--merge", part)]
    assert run(*files, "--method", "percentile", "-o", merged).exit_code == 0
    assert run("--samples", lines, "--method", "percentile", "-o", at_once).exit_code == 0
    assert merged.read_bytes() == at_once.read_bytes()


def test_bad_samples(run: Run, lines: Path, tmp_path: Path) -> None:
    output = tmp_path / "scales.json"
    for number in range(12):
        (lines / f"bad{number:02}.png").write_text("text")
    first = f"{lines / 'bad00.png'} is not an image that Pillow can read"
    refused = run("--samples", lines, "-o", output)
    assert refused.stderr == f"error: {first}; --skip-bad leaves it out\n"
    assert refused.exit_code == 2
    done = run("--samples", lines, "--skip-bad", "-o", output)
    assert done.stdout.endswith(" tensors, 12 samples left out\n")
    printed = done.stderr.splitlines()
    assert printed[0] == f"left out: {first}"
    assert (len(printed), printed[-1]) == (11, "... and 2 more")
    again = run("--samples", lines, "--skip-bad", "--format", "json", "--force", "-o", output)
    record = json.loads(again.stdout)
    assert (record["samples"], record["method"]) == (4, "minmax")
    assert record["skipped"][0] == {"sample": str(lines / "bad00.png"), "reason": first}


def test_golden_samples(tiny_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "scales.json"
    arguments = ["calibrate", str(tiny_path), "--golden", "-o", str(output)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert read_scales(output).provenance.samples == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-o s.json", "there is nothing to decode; give --samples FOLDER, --golden or --merge"),
        (
            "--golden --shard 1/2 -o s.json",
            "s.json would hold observations of a shard, which are .npz; name it s.npz",
        ),
        ("--golden -o s.npz", "s.npz would hold scales, which are JSON; name it s.json"),
        ("--golden -o .", ". is a folder; name a file in it"),
        (
            "--golden --shard 1/2 --method mse -o s.npz",
            "a shard has no method yet; give --method with --merge",
        ),
        (
            "--golden --merge a.npz -o s.json",
            "--merge takes no samples: they were decoded with the shards; "
            "leave --samples, --golden, --skip-bad and --shard out",
        ),
        (
            "--golden --method magic -o s.json",
            "unknown method 'magic'; choose one of: minmax, moving-average, percentile, mse, "
            "entropy",
        ),
        (
            "--golden --shard 3/2 -o s.npz",
            "Invalid value for '--shard': expected K/N with K within 1..N, got '3/2'. "
            "See 'hybrid-deploy calibrate --help'.",
        ),
        ("--merge a.npz -o s.json", "a.npz does not exist"),
    ],
)
def test_wrong_requests_are_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*options.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(f"error: {message}\n")


def test_nothing_is_overwritten(run: Run, lines: Path, tmp_path: Path) -> None:
    output = tmp_path / "scales.json"
    output.write_text("mine")
    result = run("--samples", lines, "-o", output)
    assert result.stderr == f"error: {output} already exists; give --force to replace it\n"
    assert (result.exit_code, output.read_text()) == (2, "mine")
    assert run("--samples", lines, "--force", "-o", output).exit_code == 0
    assert read_scales(output).provenance.samples == 4


@pytest.mark.parametrize("options", ["-o late.json", "--shard 1/1 -o late.npz"])
def test_a_file_that_appears_during_the_work_stays(
    run: Run, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output, decode = Path(options.split()[-1]), ObservedModel.decode

    def decode_late(self: ObservedModel[TensorStatistics], inputs: Any) -> int:
        output.write_text("my only copy")
        return decode(self, inputs)

    monkeypatch.setattr(ObservedModel, "decode", decode_late)
    result = run("--samples", lines, *options.split())
    assert result.stderr == f"error: {output} already exists; give --force to replace it\n"
    assert (result.exit_code, output.read_text()) == (2, "my only copy")


def test_a_pipe_or_link_is_refused_at_the_start(run: Run, lines: Path, tmp_path: Path) -> None:
    output = tmp_path / "scales.json"
    for kind in ("pipe", "link"):
        os.mkfifo(output) if kind == "pipe" else output.symlink_to("gone")
        for force in ([], ["--force"]):
            result = run("--samples", lines, "-o", output, *force)
            assert result.stderr == (
                f"error: {output} is a {kind}, a regular file was expected; name another output\n"
            )
            assert (result.exit_code, output.is_file()) == (2, False)
        output.unlink()


STOP_AT_THIRD_SAMPLE = """
import os, signal, sys
from hybrid_deploy.calibration.observation import collect
from hybrid_deploy.cli import start

signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore SIGINT
collect._SAVE_EVERY_S = 0.0  # saves after every sample, as in a long run
stop, seen, hash_of = int(sys.argv.pop(1)), [], collect.sample_sha256

def stopping(inputs):
    seen.append(inputs)
    if len(seen) == 3:
        os.kill(os.getpid(), stop)
    return hash_of(inputs)

collect.sample_sha256 = stopping
start()
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_is_resumed(
    run: Run,
    bundle: Bundle,
    lines: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: signal.Signals,
) -> None:
    output = tmp_path / "scales.json"
    options = ("--samples", lines, "-o", output)
    stopped = subprocess.run(
        [
            sys.executable,
            "-c",
            STOP_AT_THIRD_SAMPLE,
            str(int(stop)),
            "calibrate",
            bundle.folder,
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if stop is signal.SIGINT:
        assert stopped.stderr == "error: interrupted, nothing was half-written\n"
        assert stopped.returncode == 130
    else:
        assert stopped.returncode == -stop
    assert not output.exists()
    decoded: list[Mapping[str, NDArray[Any]]] = []
    start = ObservedModel.start

    def recorded(
        model: ObservedModel[TensorStatistics], inputs: Mapping[str, NDArray[Any]]
    ) -> object:
        decoded.append(inputs)
        return start(model, inputs)

    monkeypatch.setattr(ObservedModel, "start", recorded)
    assert run(*options).exit_code == 0
    assert len(decoded) == 2, "the observations of the first two samples were saved"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "another"))
    resumed = output.read_bytes()
    assert run(*options, "--force").exit_code == 0
    assert output.read_bytes() == resumed

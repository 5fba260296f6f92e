"""Tests of the whole benchmark on a tiny model; they compare no times."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from tests.benchmarks.cpu.child import Child, ChildError, command_of, run_to_end
from tests.benchmarks.cpu.contender import Job
from tests.benchmarks.cpu.contenders import ours
from tests.benchmarks.cpu.contest import Contest, Setting, delete_ours, run_contest
from tests.benchmarks.cpu.entries import Entry, entries_of
from tests.benchmarks.cpu.floor import Rates
from tests.benchmarks.cpu.models import build
from tests.benchmarks.cpu.page import command, page
from tests.benchmarks.cpu.workloads import CLASSES, FLOAT, MEASURED, TINY, WHISPER

OURS = Entry("hybrid-deploy", "ours", "fp32")
TORCH = Entry("torch re-run", "torch_rerun", "eager")
ONNX = Entry("ONNX Runtime re-run", "onnx_rerun", "fp32")
MISSING = Entry("CTranslate2", "ctranslate2", "float32", "ctranslate2")
ROUNDS = 2


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tiny model, and with its conversions that need PyTorch."""
    folder = tmp_path_factory.mktemp("bench")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of PyTorch's exporter
        build(TINY.name, folder)
    ours.prepare(Job(TINY.name, "fp32", 1, str(folder)))
    for entry in (OURS, ONNX):
        (folder / TINY.name / f"{entry.module}-{entry.form}.prepared").touch()
    return folder


@pytest.fixture(scope="module")
def contest(work: Path) -> Contest:
    setting = Setting(TINY.name, FLOAT, 1, 0.0, ROUNDS, work, None)
    return run_contest(setting, [OURS, TORCH, ONNX, MISSING], Rates(), lambda text: None)


def test_every_contender_generates_the_tokens_of_pytorch(contest: Contest) -> None:
    assert len(contest.reference) == TINY.tokens
    assert [outcome.entry for outcome in contest.finished] == [OURS, TORCH, ONNX]
    for entry in (OURS, TORCH, ONNX):
        turns = contest.race.turns[entry.title]
        assert [turn.tokens for turn in turns] == [tuple(contest.reference)] * ROUNDS
        assert all(turn.encoder_ms and 0 < turn.encoder_ms < 1e4 for turn in turns)
        assert all(0 < turn.first_ms < 1e4 and turn.total_ms > 0 for turn in turns)


def test_every_process_reports_times_ram_and_versions(contest: Contest) -> None:
    for outcome in contest.finished:
        assert outcome.load_ms > 0 and outcome.import_ms > 0
        assert outcome.peak_mb is None or outcome.peak_mb > 10
        assert outcome.versions
    (first, *_) = contest.outcomes
    assert (first.remark, contest.floor(first) is None) == ("", False)
    assert first.overhead is not None and first.overhead.step_us > 0
    assert first.overhead.refine_us == 0


def test_the_page_has_a_row_for_every_contender(contest: Contest) -> None:
    text = page([contest], {1: contest.rates}, ["--workload", "tiny", "--work", "/home/me"])
    for entry in (OURS, TORCH, ONNX):
        assert f"| {entry.title} |" in text
    assert "`python -m tests.benchmarks.cpu --workload tiny --work FOLDER`" in text
    assert "### tiny, float, 1 thread: 2 rounds" in text
    assert f"| {OURS.title} | tokens that are those of eager PyTorch | 6/6 | 6/6 | yes |" in text
    row = next(line for line in text.splitlines() if line.startswith("| CTranslate2 float32 |"))
    assert "failed: no environment ctranslate2: make bench-rivals RIVALS=FOLDER makes it" in row


def test_a_contender_that_cannot_load_reports_its_error(work: Path) -> None:
    job = Job(TINY.name, "fp16", 1, str(work))
    child = Child(command_of(Path(sys.executable), "serve", "ours", job), job, work / "child.log")
    try:
        with pytest.raises(ChildError, match=r"InputError: .*no variant 'fp16'"):
            child.answer(60)
    finally:
        child.kill()


def test_the_error_of_a_failed_process_is_its_last_line(work: Path) -> None:
    job = Job(TINY.name, "fp32", 1, str(work))
    code = "import sys; print('at work', file=sys.stderr); sys.exit('  \\nout of luck')"
    with pytest.raises(ChildError, match=r"^ended with status 1: out of luck$"):
        run_to_end([sys.executable, "-c", code], job, work / "failed.log", 60)


def test_a_hanging_process_is_killed(work: Path) -> None:
    job = Job(TINY.name, "fp32", 1, str(work))
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ChildError, match=r"^took longer than 1 s$"):
        run_to_end(command, job, work / "hangs.log", 1)
    child = Child(command, job, work / "hangs.log")
    try:
        with pytest.raises(ChildError, match=r"^took longer than 1 s$"):
            child.answer(1)
    finally:
        child.kill()


def test_every_class_has_ours_and_rivals() -> None:
    whisper = {kind: {entry.name for entry in entries_of(WHISPER.name, kind)} for kind in CLASSES}
    assert all("hybrid-deploy" in names and len(names) > 2 for names in whisper.values())
    assert all(len(entries_of(name, FLOAT)) > 4 for name in MEASURED)
    assert entries_of(TINY.name, "4-bit") == []


def test_the_command_line_is_shown_without_paths() -> None:
    arguments = ["--seconds", "60", "--rivals=/home/me/venvs", "--out", "x.md"]
    assert (
        command(arguments)
        == "python -m tests.benchmarks.cpu --seconds 60 --rivals=FOLDER --out FOLDER"
    )


def test_delete_ours_leaves_the_rivals_files(tmp_path: Path) -> None:
    rival_marker = tmp_path / "onnx_rerun-fp32.prepared"
    our_marker = tmp_path / "ours-fp32.prepared"
    for path in (rival_marker, our_marker, tmp_path / "ours.bundle" / "manifest.json"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    delete_ours(tmp_path)
    assert list(tmp_path.iterdir()) == [rival_marker]
    delete_ours(tmp_path / "never made")

"""install and rollback, with the golden samples decoded in a process of their own."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.cli.commands.install import _verify
from hybrid_deploy.errors import BundleError, UsageError
from hybrid_deploy.report import json_text
from hybrid_deploy.runtime.tensorrt_builder.options import BuildOptions
from tests.cli.test_process import shell


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_an_update_and_the_way_back(
    own_path: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = tmp_path / "slots"
    (tmp_path / "click.py").write_text("raise SystemExit('a module of the working folder ran')")
    monkeypatch.chdir(tmp_path)
    code, output = call("install", own_path, "--into", slots, "--format", "json")
    assert code == 0, output
    record = json.loads(output.splitlines()[-1])
    assert record == {"current": str(slots / "0001"), "link": str(slots / "current")}
    assert call("run", slots / "current", page)[0] == 0
    manifest = open_bundle(own_path).manifest
    wrong = msgspec.structs.replace(manifest.golden[0], tokens=(3, 3, 3, 3))
    seal_bundle(own_path, msgspec.structs.replace(manifest, golden=(wrong,)))
    code, output = call("install", own_path, "--into", slots)
    assert code == 1
    assert (
        "does not give the original model's tokens on this machine; nothing was switched" in output
    )
    assert sorted(path.name for path in slots.iterdir()) == [".installed.json", "0001", "current"]
    seal_bundle(own_path, manifest)
    assert call("install", own_path, "--into", slots)[0] == 0
    code, output = call("rollback", slots)
    assert (code, output) == (0, f"{slots / 'current'} is 0001 now\n")
    assert call("rollback", slots)[0] == 2


def test_an_empty_name_is_not_the_current_folder(
    own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for arguments in (("install", own_path, "--into", ""), ("rollback", "")):
        code, output = call(*arguments)
        assert (code, "a path was expected, got an empty text" in output) == (2, True)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("redirection", "words"),
    [(">&-", "stdout is closed"), ("> /dev/full", "No space left on device")],
)
def test_an_update_is_done_though_nobody_can_read_it(
    own_path: Path, tmp_path: Path, redirection: str, words: str
) -> None:
    slots = tmp_path / "slots"
    for number in (1, 2):
        done = shell(f"hybrid-deploy install $1 --into $2 {redirection}", own_path, slots)
        assert done.returncode == 0, done.stderr
        assert f"{slots / 'current'} is 000{number} now (stdout could not" in done.stderr
        assert words in done.stderr.splitlines()[-1]
    done = shell(f"hybrid-deploy rollback $1 {redirection}", slots)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert words in line
    assert open_bundle(slots / "current").folder.name == "0001"


def test_a_reader_of_an_update_that_has_gone_is_no_failure(own_path: Path, tmp_path: Path) -> None:
    slots = tmp_path / "slots"
    done = shell("set -o pipefail; hybrid-deploy install $1 --into $2 | exec true", own_path, slots)
    assert done.returncode == 0
    assert open_bundle(slots / "current").folder.name == "0001"


def test_variants_that_differ_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [
        {"variant": "fp32", "verdict": "ok"},
        {"variant": "fp16", "verdict": "ok"},
        {"variant": "int8", "verdict": "not run: no kernels"},
        {"variant": "int8-cpu", "verdict": "differs from the original model"},
    ]
    printed = f"a vendor's line\n{json_text(rows)}\n"
    monkeypatch.setattr(
        "subprocess.run", lambda command, **_: CompletedProcess(command, 0, printed, "")
    )
    _verify(tmp_path, "auto", 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "the golden samples give the original model's tokens on this device with fp32, fp16",
        "warning: variant int8: not run: no kernels",
        "warning: variant int8-cpu: differs from the original model",
    ]


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (1, "a report\nerror: it differs\n", "it differs"),
        (-signal.SIGSEGV, "14 files are as they were written\n",
         "the process that decodes the golden samples on this device was ended by SIGSEGV after it "
         "said: 14 files are as they were written"),
        (-signal.SIGKILL, "",
         "the process that decodes the golden samples on this device was ended by SIGKILL"),
        (3, "", "the process that decodes the golden samples on this device ended with 3"),
    ],
)  # fmt: skip
def test_the_end_of_the_trial_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, stderr: str, said: str
) -> None:
    monkeypatch.setattr(
        "subprocess.run", lambda command, **_: CompletedProcess(command, code, "", stderr)
    )
    with pytest.raises(BundleError) as caught:
        _verify(tmp_path, "auto", 1.0)
    assert str(caught.value) == f"{said}; nothing was switched"


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e11", "0"])
@pytest.mark.parametrize("command", ["install", "build"])
def test_a_time_that_no_system_waits_is_refused(
    command: str, seconds: str, own_path: Path, tmp_path: Path
) -> None:
    where = ("--into", tmp_path / "slots") if command == "install" else ("--target", "rtx:any")
    code, output = call(command, own_path, *where, "--timeout", seconds)
    assert (code, "Invalid value for '--timeout'" in output) == (2, True), output
    assert not (tmp_path / "slots").exists()


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e11, 0, True, "1"])
def test_a_build_has_a_time_limit(seconds: Any) -> None:
    with pytest.raises(UsageError, match=r"^timeout_s must be over 0 and at most 1000000 seconds"):
        BuildOptions(timeout_s=seconds)

"""Wrong requests: one line on stderr, the right exit code, and no partial output."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    def invoke(*args: object) -> Result:
        return CliRunner().invoke(main, [str(arg) for arg in args])

    return invoke


def assert_refused(result: Result, code: int, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert result.exit_code == code
    assert result.stdout == ""


def test_missing_file(run: Run, tiny_path: Path) -> None:
    assert_refused(run("run", tiny_path, "no.png"), 2, "no.png does not exist")


def test_not_an_image(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    assert_refused(run("run", tiny_path, tmp_path / "a.png"), 2, "a.png is not an image")


def test_corrupt_image(run: Run, tiny_path: Path, page: Path) -> None:
    page.write_bytes(page.read_bytes()[:-40])
    assert_refused(run("run", tiny_path, page), 2, "page.png is a damaged image")


def test_no_bundle(run: Run, tmp_path: Path, page: Path) -> None:
    for command in ("run", "profile"):
        assert_refused(run(command, tmp_path, page), 2, "is not a bundle: it has no manifest.json")
    for command in ("inspect", "verify"):
        assert_refused(run(command, tmp_path / "x"), 2, "x does not exist")


def test_changed_byte(run: Run, own_path: Path, page: Path) -> None:
    path = own_path / "fp32" / "weights.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    assert_refused(run("run", own_path, page), 1, "is damaged: fp32/weights.bin was changed")


def test_file_missing_from_the_bundle(run: Run, own_path: Path, page: Path) -> None:
    (own_path / "fp32" / "encoder.onnx").unlink()
    assert_refused(run("run", own_path, page), 1, "fp32/encoder.onnx is missing")


def test_unknown_variant_and_backend(run: Run, tiny_path: Path, page: Path) -> None:
    assert_refused(
        run("run", tiny_path, page, "--variant", "int3"), 2, "no variant 'int3' (it has fp32)"
    )
    assert_refused(
        run("run", tiny_path, page, "--backend", "npu"), 2, "unknown backend 'npu'; choose one of"
    )


def test_unknown_precision(run: Run, tiny_path: Path) -> None:
    result = run("quantize", tiny_path, "--precision", "int3")
    assert_refused(result, 2, "int3", "fp16", "int8")


def test_unknown_target(run: Run, tiny_path: Path) -> None:
    result = run("build", tiny_path, "--target", "rtx:sm_10")
    assert_refused(result, 2, "rtx:sm_10", "rtx:sm_86")


def test_unknown_option_and_command(run: Run, tiny_path: Path) -> None:
    assert_refused(run("run", tiny_path, "--no"), 2, "No such option", "hybrid-deploy run --help")
    assert_refused(run("walk"), 2, "No such command 'walk'")


def test_missing_library_names_the_extra(
    run: Run, tiny_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(
        sys.modules, "hybrid_deploy.runtime.backends.onnxruntime.backend", raising=False
    )
    assert_refused(
        run("run", tiny_path, page), 2, "onnxruntime is not installed", "'hybrid-deploy[cpu]'"
    )


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["quantize", "{}", "--precision", "fp16"], "onnx_ir", "calibrate"),
        (["export", "tests.conftest:job", "-o", "x.bundle"], "torch", "export"),
    ],
)
def test_base_install_names_the_extra(
    tiny_path: Path, arguments: list[str], package: str, extra: str
) -> None:
    """Runs the command in another process, where the package cannot be imported."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\nfrom hybrid_deploy.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, *(a.format(tiny_path) for a in arguments)]
    process = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    install = f"pip install 'hybrid-deploy[{extra}]'"
    assert process.stderr == f"error: {package} is not installed; install it with: {install}\n"


def test_output_that_exists(run: Run, tiny_path: Path) -> None:
    result = run("export", "hybrid_deploy.export.reference.job:feature_map", "-o", tiny_path)
    assert_refused(result, 2, "already exists; give --force to replace it")


def test_force_replaces_bundles_alone(run: Run, own_path: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "manifest.json").write_text("{}")
    (own_path / "notes.txt").touch()
    command = ("export", "no_such_module:job", "--force", "-o")
    assert_refused(run(*command, fake), 2, "fake exists and is not a bundle; it is not replaced")
    assert_refused(run(*command, own_path), 2, "it also holds notes.txt, which the bundle does not")


def test_export_job_that_needs_an_unknown_package(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "readers.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    result = run("export", "readers:job", "-o", "out.bundle")
    assert_refused(result, 2, "No module named 'no_such_package'; install it")


def test_bad_export_jobs(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.bundle"
    for model, words in {
        "model": "expected package.module:factory, got 'model'",
        "no_such_module:job": "there is no module 'no_such_module'",
        "json:job": "json has no function 'job'",
        "os:getcwd": "os:getcwd returned str, an ExportJob or a torch.nn.Module was expected",
    }.items():
        assert_refused(run("export", model, "-o", out), 2, words)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(run: Run, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_deploy.cli.commands import inspect

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(inspect, "open_bundle", full)
    assert_refused(run("inspect", tiny_path), 1, "the disk is full; free some space")


def test_errors_of_the_system(run: Run, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_deploy.cli.commands import inspect

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(inspect, "open_bundle", refused)
    line = f"{tiny_path}: Permission denied; check the path and its permissions"
    assert_refused(run("inspect", tiny_path), 1, line)


def test_a_working_folder_that_was_deleted_is_named(
    run: Run, own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = run("calibrate", own_path, "--golden", "-o", "scales.json")
    assert_refused(result, 1, "the working folder was deleted; change to another folder, and run")


def test_an_unexpected_exception_asks_for_a_report(
    run: Run, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybrid_deploy.cli.commands import inspect

    def broken(path: Path) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(inspect, "open_bundle", broken)
    monkeypatch.delenv("HYBRID_DEPLOY_TRACEBACK", raising=False)
    assert_refused(
        run("inspect", tiny_path), 1,
        "inspect failed unexpectedly with ZeroDivisionError: division by zero; this is a fault of "
        "hybrid-deploy", "please report it, with the traceback that HYBRID_DEPLOY_TRACEBACK=1",
    )  # fmt: skip
    monkeypatch.setenv("HYBRID_DEPLOY_TRACEBACK", "1")
    result = run("inspect", tiny_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert 'raise ZeroDivisionError("division' in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def job():\n    return 1 / 0\n", "readers.py:2: readers:job fails: ZeroDivisionError"),
        ("raise ValueError('at import')\n", "readers.py:1: importing readers fails: ValueError"),
        ("def job(:\n", "readers.py:1: importing readers fails: SyntaxError"),
        ("def job():\n    return open('no.pt')\n", "readers:job fails: FileNotFoundError"),
    ],
)
def test_a_factory_that_fails_names_its_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    (tmp_path / "readers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "readers", raising=False)
    assert_refused(run("export", "readers:job", "-o", "out.bundle"), 2, words)
    sys.modules.pop("readers", None)


def test_interruption(run: Run, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_deploy.cli.commands import inspect

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "open_bundle", interrupted)
    assert_refused(run("inspect", tiny_path), 130, "interrupted")


def test_bad_samples(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    assert_refused(run("compare", tiny_path, "--samples", tmp_path), 2, "has no labels.csv")


def test_a_pair_that_fails_is_a_row_of_the_table(run: Run, tiny_path: Path, page: Path) -> None:
    (page.parent / "labels.csv").write_text("file,text\npage.png,abc\n")
    result = run(
        "compare", tiny_path, "--samples", page.parent, "--backend", "onnxruntime",
        "--backend", "npu", "--format", "csv",
    )  # fmt: skip
    assert result.exit_code == 0
    rows = result.stdout.splitlines()
    assert rows[1].endswith(",ok")
    assert "failed: unknown backend 'npu'" in rows[2]


def test_every_command_has_help_with_an_example(run: Run) -> None:
    for command in main.list_commands(click.Context(main)):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"Example: hybrid-deploy {command}" in result.stdout


def test_help_and_version_do_not_load_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from hybrid_deploy.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'PIL', 'sklearn'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")

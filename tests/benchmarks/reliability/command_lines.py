"""Hostile command lines: every command ends with a result or one line, and no traceback."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from hybrid_deploy.cli import main
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.trials import FaultError, row_of_trials

_PLANTED = -1
_PROCESS_SHARE = 25
"""One of so many command lines runs in a process of its own."""

_LIMIT_S = 60.0
_HOSTILE = (
    "", " ", "-", "--", "-1", "0", "1", "2", "1e999", "nan", "99999999999999999999", "x", "a,b",
    "../x", "/", "/dev/null", "/dev/full", "/proc/self/mem", "x" * 300, "a/" * 2100, "\udcff", "\n",
    "\x1b[2J", "\u202ex", "[red]", "(" * 500, "(a+)+$", "1,-5", "1,99", "1,,2", "json", "table",
    "fp32", "int8", "golden", ".", "*", "digits.bundle/manifest.json", "日本", "rtx:sm_86", "cpu",
)  # fmt: skip
_COMMANDS: dict[str, tuple[str, ...]] = {
    "run": (
        "--text", "--prompt", "--prompt-text", "--beams", "--n-best", "--length-penalty",
        "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--max-tokens", "--stop",
        "--pattern", "--timeout", "--variant", "--backend", "--threads", "--require-signature",
        "--at-least", "--format",
    ),
    "inspect": ("--format",),
    "verify": ("--backend", "--trusted", "--at-least", "--format"),
    "profile": ("--variant", "--backend", "--threads", "--format"),
    "compare": (
        "--samples", "--variant", "--backend", "--normalize", "--worst", "--threads", "--format",
    ),
    "calibrate": ("--samples", "--shard", "--merge", "--method", "-o", "--format"),
    "quantize": (
        "--encoder", "--decoder", "--block", "--floats", "--target", "--scales", "--normalize",
    ),
    "build": ("--target", "--variant", "--timeout", "--format"),
    "sign": ("--key", "--version"),
    "keygen": (),
    "install": ("--into", "--backend", "--timeout", "--at-least"),
    "rollback": ("--at-least", "--format"),
    "export": ("-o", "--weights", "--opset", "--head", "--batch", "--samples", "--name"),
}  # fmt: skip
_FLAGS = ("--stream", "--long", "--scores", "--golden", "--skip-bad", "--force", "--auto", "-h")
_REQUIRED = {"calibrate": ("-o", "scales.json"), "export": ("-o", "out.bundle"),
             "install": ("--into", "slots"), "sign": ("--key", "no.key"),
             "compare": ("--samples", "."), "quantize": ("--precision", "int9")}  # fmt: skip
_ERROR_LINE = re.compile(r"error: [^\n]+\n?")
_FOREIGN = ("Traceback", "failed unexpectedly", "\x1b", "\u202e")


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Runs `count` hostile command lines.

    Args:
        count: number of command lines.
        seed: seed of the first one.
        bundle: bundle that they name, of which a copy is used; None exports a tiny one.
    """
    return row_of_trials(
        "hostile command lines",
        "a command whose library raises a KeyError",
        CommandTrial,
        range(seed, seed + count),
        (_PLANTED,),
        bundle=bundle,
        limit_s=_LIMIT_S,
    )


@dataclass(frozen=True)
class CommandTrial:
    """Runs a hostile command line in a folder with a copy of a bundle.

    Attributes:
        original: the bundle.
        scratch: folder of the copy, and working folder of the commands.
    """

    original: Path
    scratch: Path

    def __call__(self, seed: int) -> str:
        """Returns the exit code in words.

        Raises:
            FaultError: the command ended with a traceback, or with other lines than one error.
        """
        rng = random.Random(seed)
        bundle = self.scratch / "digits.bundle"
        if not bundle.exists():
            shutil.copytree(self.original, bundle)
        os.chdir(self.scratch)
        os.environ["HYBRID_DEPLOY_CACHE"] = str(self.scratch / "cache")
        if seed == _PLANTED:
            with mock.patch("hybrid_deploy.cli.commands.inspect.open_bundle", {}.__getitem__):
                return _in_process(["inspect", str(bundle)])
        arguments = command_line(bundle, rng)
        runs = _alone if seed % _PROCESS_SHARE == 0 else _in_process
        return runs(arguments)


def command_line(bundle: Path, rng: random.Random) -> list[str]:
    """Returns the arguments of a hostile command line for a bundle."""
    command = rng.choice(tuple(_COMMANDS))
    arguments = [command]
    if rng.random() < 0.9:
        arguments.append(rng.choice((str(bundle),) * 4 + _HOSTILE))
    if command in ("run", "profile") and rng.random() < 0.9:
        arguments.append(rng.choice((str(bundle / "golden" / "page.png"),) * 4 + _HOSTILE))
    required = dict([_REQUIRED[command]]) if command in _REQUIRED else {}
    for option in rng.sample(_COMMANDS[command], min(len(_COMMANDS[command]), rng.randrange(3))):
        required[option] = rng.choice(_HOSTILE)
    if command == "profile":
        required["--runs"] = rng.choice(("1", "2", "0", "x"))
    arguments += [part for pair in required.items() for part in pair]
    if rng.random() < 0.3:
        arguments.append(rng.choice(_FLAGS))
    if rng.random() < 0.1:
        arguments.append(rng.choice(_HOSTILE))
    return arguments


def _in_process(arguments: Sequence[str]) -> str:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise FaultError(f"{arguments}: {type(result.exception).__name__}: {result.exception}")
    return _judged(arguments, result.exit_code, result.stdout, result.stderr)


def _alone(arguments: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hybrid_deploy", *map(os.fsencode, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    return _judged(arguments, done.returncode, out, err)


def _judged(arguments: Sequence[str], code: int, out: str, err: str) -> str:
    for word in _FOREIGN:
        if word in out + err:
            line = next(line for line in (out + err).splitlines() if word in line)
            raise FaultError(f"{arguments}: {line}")
    if code not in (0, 1, 2):
        raise FaultError(f"{arguments}: exit code {code}")
    errors = _ERROR_LINE.findall(err)
    if code and (len(errors) != 1 or not err.endswith(errors[0])):
        raise FaultError(f"{arguments}: no single line of error: {err!r}")
    return f"exit {code}"

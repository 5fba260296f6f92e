"""`hybrid-deploy install`: a bundle -> the current bundle of a device, if it works there."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import click

from hybrid_deploy.cli.commands.verify import OK
from hybrid_deploy.cli.options.common import BACKEND, BUNDLE
from hybrid_deploy.cli.options.numbers import LONGEST_S, FiniteRange
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.options.trust import AT_LEAST, trust_of, trusted_keys
from hybrid_deploy.cli.output import log, say_of_finished_work
from hybrid_deploy.errors import BundleError
from hybrid_deploy.scratch import scratch_folder

_ERROR = "error: "

INTO = click.option(
    "--into", "slots", type=PATH, required=True, metavar="SLOTS",
    help="Folder of the installed bundles; SLOTS/current is the one to run.",
)  # fmt: skip


@click.command(epilog="Example: hybrid-deploy install new.bundle --into /var/lib/digits")
@BUNDLE
@INTO
@BACKEND
@trusted_keys("--require-signature")
@AT_LEAST
@click.option(
    "--timeout", type=FiniteRange(min=1, max=LONGEST_S), default=600.0, show_default=True,
    metavar="SECONDS", help="How long the golden samples may take.",
)  # fmt: skip
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text")
def install(
    bundle: Path,
    slots: Path,
    backend: str,
    keys: tuple[Path, ...],
    at_least: int | None,
    timeout: float,
    output_format: str,
) -> None:
    """Copy BUNDLE to SLOTS, decode its golden samples there, and make it current.

    SLOTS/current is a link that is switched in one step. If the copy is not signed as required, is
    damaged or gives other tokens on this device, the running bundle stays and the exit code is 1.
    A quantized variant that differs, or cannot run here, is named. The bundle before it is kept,
    see `rollback`.
    """
    from hybrid_deploy.bundle.releases import install as install_bundle

    trust = trust_of(keys, at_least, "--require-signature")
    installed = install_bundle(bundle, slots, lambda path: _verify(path, backend, timeout), trust)
    print_current(installed, slots, output_format)


def print_current(release: Path, slots: Path, output_format: str) -> None:
    """Prints which bundle is current now."""
    from hybrid_deploy.bundle.releases import CURRENT_LINK

    link = slots / CURRENT_LINK
    if output_format == "json":
        say_of_finished_work(json.dumps({"current": str(release), "link": str(link)}))
    else:
        say_of_finished_work(f"{link} is {release.name} now")


def _verify(path: Path, backend: str, timeout: float) -> None:
    """Runs `verify` in a process of its own, so that even a crash leaves the running bundle.

    Raises:
        BundleError: the golden samples give other tokens on this device, or cannot be decoded.
    """
    from hybrid_deploy.runtime.host import own_process

    command = own_process.command(
        "hybrid_deploy", "verify", str(path.absolute()), "--backend", backend, "--format", "json"
    )
    try:
        with scratch_folder("install") as empty:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=empty,
                env=own_process.environment(),
                timeout=timeout,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise BundleError(
            f"the golden samples take over {timeout:g} s on this device; nothing was switched"
        ) from error
    if done.returncode:
        raise BundleError(f"{_failure(done)}; nothing was switched")
    _report_variants(done.stdout)


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    """Returns why `verify` failed: its error line, or how its process ended without one."""
    lines = done.stderr.strip().splitlines()
    if lines and lines[-1].startswith(_ERROR):
        return lines[-1].removeprefix(_ERROR)
    if done.returncode < 0:
        ended = f"was ended by {_signal_name(-done.returncode)}"
    else:
        ended = f"ended with {done.returncode}"
    said = f" after it said: {lines[-1]}" if lines else ""
    return f"the process that decodes the golden samples on this device {ended}{said}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _report_variants(table: str) -> None:
    """Logs which variants give the original model's tokens, and what is wrong with each other one.

    Args:
        table: the rows that `verify --format json` printed.
    """
    try:
        rows = json.loads(table[table.find("[\n") :])  # a vendor's library may print before it
    except ValueError:
        log("the golden samples were decoded; see what each variant gives: hybrid-deploy verify")
        return
    right = [row["variant"] for row in rows if row["verdict"] == OK]
    log(
        "the golden samples give the original model's tokens on this device with "
        f"{', '.join(right)}"
    )
    for row in rows:
        if row["verdict"] != OK:
            log(f"warning: variant {row['variant']}: {row['verdict']}")

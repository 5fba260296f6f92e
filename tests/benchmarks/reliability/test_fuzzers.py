"""Short forms of the checks with hostile bundles, files, options and command lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.reliability import (
    command_lines,
    graphs,
    inputs,
    manifests,
    mutations,
    options,
    tokenizer_files,
)
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.trials import run_trials


@pytest.mark.parametrize(
    ("check", "count"),
    [
        (mutations.check, 60),
        (manifests.check, 60),
        (graphs.check, 40),
        (tokenizer_files.check, 60),
        (options.check, 120),
        (command_lines.check, 24),
    ],
)
def test_nothing_ends_a_process_or_escapes(
    check: Callable[..., Row], count: int, tiny_path: Path
) -> None:
    row = check(count, 1, bundle=tiny_path)
    assert row.faults == ()
    assert row.ok
    assert row.count == count


@pytest.mark.parametrize("kind", inputs.KINDS)
def test_damaged_files(kind: str, tiny_path: Path) -> None:
    row = inputs.check(15, 1, bundle=tiny_path, kinds=(kind,))
    assert row.faults == ()
    assert row.ok


def trial(seed: int) -> str:
    """Ends with what the seed says."""
    if seed == 0:
        return "fine"
    if seed == 1:
        raise KeyError("x")
    if seed == 2:
        raise SystemExit(3)
    return f"{len(bytearray(b'x') * (5 << 28))} bytes"


def test_what_a_trial_can_do_is_noticed() -> None:
    tally, caught = run_trials(trial, (0, 1, 2, 3), ())
    assert tally.words == {"fine": 1}
    assert [fault.split(":")[1].strip() for fault in tally.faults][:2] == ["KeyError", "SystemExit"]
    assert "MB more RAM" in tally.faults[2]
    assert caught
    assert run_trials(trial, (), (1,))[1]
    assert not run_trials(trial, (), (1, 0))[1]

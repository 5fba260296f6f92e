"""Writes the report: machine, versions and notes, and a section for each class."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence

from hybrid_deploy.report import Column, render
from hybrid_deploy.runtime.doctor.cpu import check_cores, check_cpu
from tests.benchmarks.cpu.contest import Contest
from tests.benchmarks.cpu.floor import Rates
from tests.benchmarks.cpu.table import section
from tests.benchmarks.cpu.workloads import WORKLOADS

_FOLDERS = ("--rivals", "--work", "--out")
_NOTES = """\
Every contender is a process of its own, pinned to as many cores as it has threads. All contenders
of a class are loaded at the same time. In each round every contender generates once; the order is
reversed from round to round. The machine is shared and its speed drifts, so a ratio is the median
of the ratios of all rounds, with its quartiles. Other times are medians; `least` is the shortest
time of all rounds. A generation starts from the encoder's input and is greedy. The weights are
random, so with fewer bits the tokens soon differ. `first token` is the time of a generation of one
token, `ms/next token` the time of each further token, and `same tokens` the number of leading
tokens that equal those of eager PyTorch. `load` is the time to load the model, without imports, and
`peak MB` the peak RAM of the process. `waited` is the time in which threads of the process were
ready to run but no core was free, in percent of the process's time.

The floor of a token is the time to read the data of its step (weights, memory and the part of the
caches that is filled on average) at the best rate measured for buffers at least as large. The floor
of the encoder is the time of its products at the best rate of a large product in the precision of
the class. Floors are compared with the `least` times, because both are the best of the machine.
`in Python` is the time between two runs of the step graph; `warm` is the same loop with graphs that
compute nothing and leave the CPU's caches unchanged.
"""


def page(contests: Sequence[Contest], rates: Mapping[int, Rates], arguments: Sequence[str]) -> str:
    """Returns the report as Markdown.

    Args:
        contests: results of the classes.
        rates: best rates of the machine, by number of threads.
        arguments: arguments of the command line.
    """
    loads = [load for contest in contests for load in contest.load]
    return "\n".join(
        [
            "# Generation on a CPU, measured\n",
            f"`{command(arguments)}`, {datetime.date.today()}, Python "
            f"{platform.python_version()}; {check_cpu().finding}; {check_cores().finding}; "
            f"load average {min(loads):.1f} to {max(loads):.1f}.\n",
            *(f"- {name}: {WORKLOADS[name].title}." for name in _names(contests)),
            f"\n{_NOTES}",
            f"Versions: {', '.join(sorted(_versions(contests)))}.\n",
            "Best rates of this machine, reading in GB/s by the size of the buffer:\n",
            _rates_table(rates),
            *(section(contest) for contest in contests),
        ]
    )


def command(arguments: Sequence[str]) -> str:
    """Returns the command line with the word FOLDER in place of this machine's paths."""
    shown, is_path = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        shown.append(
            "FOLDER" if is_path else f"{name}=FOLDER" if _is_path_option(name, equals) else argument
        )
        is_path = argument in _FOLDERS
    return shlex.join(["python", "-m", "tests.benchmarks.cpu", *shown])


def _is_path_option(name: str, equals: str) -> bool:
    return bool(equals) and name in _FOLDERS


def _names(contests: Sequence[Contest]) -> list[str]:
    return list(dict.fromkeys(contest.setting.workload for contest in contests))


def _versions(contests: Sequence[Contest]) -> Iterator[str]:
    """Returns every package with its version; environments may have different versions of one."""
    packages: set[tuple[str, str]] = set()
    for contest in contests:
        for outcome in contest.outcomes:
            packages.update(outcome.versions.items())
    return (f"{package} {version}" for package, version in packages)


def _rates_table(rates: Mapping[int, Rates]) -> str:
    """Returns the best rates of the machine as a table, one row per number of threads."""
    sizes = sorted({size for best in rates.values() for size in best.read})
    columns = [
        Column("threads", "threads"),
        *(Column(str(size), f"{size >> 20} MB", digits=1) for size in sizes),
        Column("multiply", "GFLOP/s float32", digits=0),
        Column("multiply_8_bits", "GOP/s 8 bits", digits=0),
    ]
    records = [
        {
            "threads": threads,
            **{str(size): rate / 1e9 for size, rate in best.read.items()},
            "multiply": best.multiply / 1e9,
            "multiply_8_bits": best.multiply_8_bits / 1e9,
        }
        for threads, best in sorted(rates.items())
    ]
    return render(records, columns, "md")

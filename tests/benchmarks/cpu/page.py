"""The whole report: what was run where, and a section for each class."""

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
Every contender is a process of its own, pinned to as many cores as it has threads, loaded with all
others of its class. In a round each generates once, forwards and backwards in turn: the machine is
shared and its speed drifts, so a ratio is the median of the ratios of all rounds, with its
quartiles. Times are medians, `least` is the best of all rounds. A generation begins with the
encoder's input and is greedy; the weights are random, so in fewer bits the tokens differ early.
`first token` is a generation of one token, `ms/next token` what each further one adds, `same
tokens` the leading tokens that are those of eager PyTorch. `load` is what follows the imports,
`peak MB` the most memory of the process. `waited` is how long its threads were ready to run and no
core was free, for other processes or for more threads of its own, in percent of its time.

The floor of a token is what its step reads (weights, memory, the caches as far as they are filled
on average) at the best rate of reading a buffer at least as large; the floor of the encoder is its
products at the best rate of a large product in the class's numbers. Both are held against the
least times, which are the machine's best too. `in Python` is what lies between two runs of the step
graph; `warm` is the same loop over graphs that do nothing and leave the CPU's caches as they are.
"""


def page(contests: Sequence[Contest], rates: Mapping[int, Rates], arguments: Sequence[str]) -> str:
    """Returns the report as Markdown.

    Args:
        contests: the classes that were run.
        rates: the best rates of the machine, by threads.
        arguments: of the command line.
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
    """Returns the command line, without where this machine keeps its files."""
    words, hidden = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        words.append("FOLDER" if hidden else f"{name}=FOLDER" if _hides(name, equals) else argument)
        hidden = argument in _FOLDERS
    return shlex.join(["python", "-m", "tests.benchmarks.cpu", *words])


def _hides(name: str, equals: str) -> bool:
    return bool(equals) and name in _FOLDERS


def _names(contests: Sequence[Contest]) -> list[str]:
    return list(dict.fromkeys(contest.setting.workload for contest in contests))


def _versions(contests: Sequence[Contest]) -> Iterator[str]:
    """Returns each package once for each of its versions; they differ between environments."""
    seen: set[tuple[str, str]] = set()
    for contest in contests:
        for outcome in contest.outcomes:
            seen.update(outcome.versions.items())
    return (f"{package} {version}" for package, version in seen)


def _rates_table(rates: Mapping[int, Rates]) -> str:
    """Returns the best rates of the machine, by threads."""
    sizes = sorted({size for each in rates.values() for size in each.read})
    columns = [
        Column("threads", "threads"),
        *(Column(str(size), f"{size >> 20} MB", digits=1) for size in sizes),
        Column("multiply", "GFLOP/s float32", digits=0),
        Column("multiply_8_bits", "GOP/s 8 bits", digits=0),
    ]
    records = [
        {
            "threads": threads,
            **{str(size): rate / 1e9 for size, rate in each.read.items()},
            "multiply": each.multiply / 1e9,
            "multiply_8_bits": each.multiply_8_bits / 1e9,
        }
        for threads, each in sorted(rates.items())
    ]
    return render(records, columns, "md")

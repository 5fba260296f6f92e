"""Runs one class of one workload: prepares, loads, times and describes every contender."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.manifest import GraphCost
from tests.benchmarks.cpu.child import Child, ChildError, command_of, run_to_end
from tests.benchmarks.cpu.contender import Job
from tests.benchmarks.cpu.contenders.ours import BUNDLE, bundle_path
from tests.benchmarks.cpu.entries import Entry
from tests.benchmarks.cpu.floor import Floor, Rates, floor_of
from tests.benchmarks.cpu.overhead import Overhead
from tests.benchmarks.cpu.race import Race, Turn, run_rounds
from tests.benchmarks.cpu.workloads import WORKLOADS

_PREPARE_S, _LOAD_S, _FIRST_TURN_S, _TURN_S = 3600.0, 600.0, 1800.0, 300.0
_WARM_UPS = 2
_PREPARED = ".prepared"
_SETTLE_S = 0.25  # thread pools busy-wait after their work, Intel's OpenMP for 0.2 s


@dataclass(frozen=True)
class Setting:
    """Settings of a contest.

    Attributes:
        workload: name of the workload.
        kind: the class: `float`, `8-bit` or `4-bit`.
        threads: number of CPU threads, and of cores.
        seconds: time in which new rounds start.
        rounds: smallest number of rounds.
        work: folder of models, converted models and logs.
        rivals: folder of the rivals' virtual environments; None leaves out rivals that need one.
    """

    workload: str
    kind: str
    threads: int
    seconds: float
    rounds: int
    work: Path
    rivals: Path | None

    def job(self, entry: Entry) -> Job:
        """Returns the job of an entry."""
        return Job(self.workload, entry.form, self.threads, str(self.work))

    def log(self, entry: Entry, verb: str) -> Path:
        """Returns the path of the log of an entry's process."""
        name = f"{self.workload}-{entry.module}-{entry.form}-{self.threads}-{verb}.log"
        return self.work / "logs" / name


@dataclass
class Outcome:
    """Measurements of one entry, or the reason of its failure.

    Attributes:
        entry: the contender and its form.
        failure: reason why the entry has no times; empty if it has times.
        import_ms: milliseconds to import its libraries.
        load_ms: milliseconds to load the model.
        peak_mb: peak RAM of its process in MB; None where the system does not report it.
        versions: version of each of its packages.
        costs: for ours, the cost of each graph, by role; empty for rivals.
        overhead: for ours, the time that Python adds to a step; None for rivals.
        remark: problem that left the times valid; empty if there was none.
    """

    entry: Entry
    failure: str = ""
    import_ms: float = 0.0
    load_ms: float = 0.0
    peak_mb: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, GraphCost | None] = field(default_factory=dict)
    overhead: Overhead | None = None
    remark: str = ""


@dataclass(frozen=True)
class Contest:
    """Results of one class of one workload.

    Attributes:
        setting: settings of the contest.
        outcomes: outcome of each entry, in the order of the entries.
        race: turns of each entry, by its title.
        reference: tokens of eager PyTorch.
        rates: best rates of the machine so far; later classes may improve them.
        load: load average of the machine before and after.
    """

    setting: Setting
    outcomes: Sequence[Outcome]
    race: Race
    reference: Sequence[int]
    rates: Rates
    load: tuple[float, float]

    @property
    def finished(self) -> list[Outcome]:
        """Outcomes of the entries that have times."""
        return [outcome for outcome in self.outcomes if not outcome.failure]

    def floor(self, outcome: Outcome) -> Floor | None:
        """Returns the floor of one of our variants; None if the cost of its graphs is unknown."""
        task = WORKLOADS[self.setting.workload]
        return floor_of(outcome.costs, task, self.setting.kind, self.rates)


def run_contest(
    setting: Setting, entries: Sequence[Entry], rates: Rates, report: Callable[[str], None]
) -> Contest:
    """Prepares and times every entry of a class and returns the results.

    Args:
        setting: settings of the contest.
        entries: contenders with their forms.
        rates: best rates of the machine with this number of threads; updated in place.
        report: function that is called with a line of text at each stage.

    Raises:
        ChildError: the original model cannot be made.
    """
    (setting.work / "logs").mkdir(parents=True, exist_ok=True)
    load = _load_average()
    make_model(setting, report)
    outcomes = [Outcome(entry) for entry in entries]
    for outcome in outcomes:
        with _recorded_failure(outcome):
            _prepare(outcome.entry, setting, report)
    rates.keep_best(_rates(setting))
    race = _run_race(setting, outcomes, report)
    reference = json.loads(setting.job(entries[0]).reference.read_text(encoding="utf-8"))
    for outcome in outcomes:
        if outcome.entry.is_ours and not outcome.failure:
            _add_costs_and_overhead(outcome, setting)
    return Contest(setting, outcomes, race, reference, rates, (load, _load_average()))


def make_model(setting: Setting, report: Callable[[str], None]) -> None:
    """Writes the workload's model and its reference tokens, unless they exist.

    Raises:
        ChildError: the process that writes them fails.
    """
    job = Job(setting.workload, "eager", setting.threads, str(setting.work))
    if not job.reference.exists():
        report(f"making the model of {setting.workload}")
        command = [sys.executable, "-m", "tests.benchmarks.cpu.models", setting.workload, job.work]
        log = setting.work / "logs" / f"{setting.workload}-model.log"
        run_to_end(command, job, log, _PREPARE_S)


def delete_ours(folder: Path) -> None:
    """Deletes our bundle of a workload, so that the next run exports and quantizes it again."""
    for marker in folder.glob(f"ours-*{_PREPARED}"):
        marker.unlink()
    shutil.rmtree(folder / BUNDLE, ignore_errors=True)


@contextmanager
def _recorded_failure(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except ChildError as error:
        outcome.failure = str(error)


def _prepare(entry: Entry, setting: Setting, report: Callable[[str], None]) -> None:
    python = entry.python(setting.rivals)
    if python is None:
        raise ChildError(
            f"no environment {entry.environment}: make bench-rivals RIVALS=FOLDER makes it, "
            "--rivals FOLDER finds it"
        )
    job = setting.job(entry)
    done = job.folder / f"{entry.module}-{entry.form}{_PREPARED}"
    if entry.prepares and not done.exists():
        report(f"preparing {entry.title}")
        command = command_of(python, "prepare", entry.module, job)
        run_to_end(command, job, setting.log(entry, "prepare"), _PREPARE_S)
        done.touch()


def _run_race(setting: Setting, outcomes: Sequence[Outcome], report: Callable[[str], None]) -> Race:
    """Loads all contenders, warms them up, and runs the rounds."""
    children: dict[str, Child] = {}
    count = WORKLOADS[setting.workload].tokens

    def turn(title: str) -> Turn:
        time.sleep(_SETTLE_S)
        return _turn(children[title].turn(count, _TURN_S))

    try:
        for outcome in (o for o in outcomes if not o.failure):
            report(f"loading {outcome.entry.title}")
            child = children[outcome.entry.title] = _start(outcome.entry, setting)
            with _recorded_failure(outcome):
                _warm_up(outcome, child, count)
        racing = {o.entry.title: o for o in outcomes if not o.failure}
        report(f"rounds of {len(racing)}")
        race = run_rounds(
            list(racing),
            turn,
            seconds=setting.seconds,
            min_rounds=setting.rounds,
            failure=ChildError,
        )
        for title, outcome in racing.items():
            with _recorded_failure(outcome):
                if title in race.failures:
                    raise ChildError(race.failures[title])
                outcome.peak_mb = children[title].finish()["peak_mb"]
    finally:
        for child in children.values():
            child.kill()
    return race


def _start(entry: Entry, setting: Setting) -> Child:
    python, job = entry.python(setting.rivals), setting.job(entry)
    assert python is not None, "_prepare raises without an environment"
    command = command_of(python, "serve", entry.module, job)
    return Child(command, job, setting.log(entry, "serve"))


def _warm_up(outcome: Outcome, child: Child, count: int) -> None:
    loaded = child.answer(_LOAD_S)
    outcome.import_ms, outcome.load_ms = loaded["import_ms"], loaded["load_ms"]
    outcome.versions = loaded["versions"]
    turns = [child.turn(count, _FIRST_TURN_S) for _ in range(_WARM_UPS)]
    generated = len(turns[-1]["tokens"])
    if generated != count:
        raise ChildError(f"generated {generated} tokens, not {count}")


def _turn(answer: Mapping[str, Any]) -> Turn:
    return Turn(
        total_ms=answer["total_ms"],
        first_ms=answer["first_ms"],
        encoder_ms=answer["encoder_ms"],
        waited_ms=answer["waited_ms"],
        tokens=tuple(answer["tokens"]),
    )


def _load_average() -> float:
    return os.getloadavg()[0]


def _rates(setting: Setting) -> Rates:
    """Measures the machine's rates in a process of its own, pinned to as many cores."""
    job = Job(setting.workload, "", setting.threads, str(setting.work))
    command = [sys.executable, "-m", "tests.benchmarks.cpu.floor", str(setting.threads)]
    log = setting.work / "logs" / f"floor-{setting.threads}.log"
    return Rates.from_json(run_to_end(command, job, log, _LOAD_S))


def _add_costs_and_overhead(outcome: Outcome, setting: Setting) -> None:
    """Adds the graph costs and the Python overhead to an outcome of ours."""
    job = setting.job(outcome.entry)
    graphs = open_bundle(bundle_path(job)).graphs(job.form)
    outcome.costs = {role.value: graph.cost for role, graph in graphs.items()}
    command = [sys.executable, "-m", "tests.benchmarks.cpu.overhead", job.to_json()]
    log = setting.log(outcome.entry, "overhead")
    try:
        outcome.overhead = Overhead.from_json(run_to_end(command, job, log, _LOAD_S))
    except ChildError as error:
        outcome.remark = f"overhead not measured: {error}"

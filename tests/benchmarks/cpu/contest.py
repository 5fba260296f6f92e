"""One class of one workload: everyone is prepared, loaded, raced and described."""

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
_SETTLE_S = 0.25  # thread pools spin after their work, that of Intel's OpenMP for 0.2 s


@dataclass(frozen=True)
class Setting:
    """What is run, and how long.

    Attributes:
        workload: name of the workload.
        kind: the class.
        threads: CPU threads, and cores.
        seconds: how long rounds are begun.
        rounds: fewest rounds.
        work: folder of models, of what is made of them, and of logs.
        rivals: folder of the rivals' virtual environments; None leaves those out.
    """

    workload: str
    kind: str
    threads: int
    seconds: float
    rounds: int
    work: Path
    rivals: Path | None

    def job(self, entry: Entry) -> Job:
        """Returns an entry's work."""
        return Job(self.workload, entry.form, self.threads, str(self.work))

    def log(self, entry: Entry, verb: str) -> Path:
        """Returns the file of what an entry's process says."""
        name = f"{self.workload}-{entry.module}-{entry.form}-{self.threads}-{verb}.log"
        return self.work / "logs" / name


@dataclass
class Outcome:
    """What became of one entry.

    Attributes:
        failure: why it has no times; empty if it has.
        import_ms: time to import its libraries.
        load_ms: time to load the model.
        first_call_ms: the very first generation.
        peak_mb: most memory of its process.
        versions: of its packages.
        costs: of ours, what its graphs cost, by role.
        overhead: of ours, what Python adds.
        remark: what went wrong beside the times.
    """

    entry: Entry
    failure: str = ""
    import_ms: float = 0.0
    load_ms: float = 0.0
    first_call_ms: float = 0.0
    peak_mb: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, GraphCost | None] = field(default_factory=dict)
    overhead: Overhead | None = None
    remark: str = ""


@dataclass(frozen=True)
class Contest:
    """A class that was run.

    Attributes:
        outcomes: of everyone, in the order of the entries.
        race: the turns by the entries' titles.
        reference: the tokens of eager PyTorch.
        rates: the best of the machine, which later classes may better.
        load: average of runnable processes on the machine, before and after.
    """

    setting: Setting
    outcomes: Sequence[Outcome]
    race: Race
    reference: Sequence[int]
    rates: Rates
    load: tuple[float, float]

    @property
    def finished(self) -> list[Outcome]:
        """Those with times."""
        return [each for each in self.outcomes if not each.failure]

    def floor(self, outcome: Outcome) -> Floor | None:
        """Returns the least times of one of ours; None if its costs are not known."""
        task = WORKLOADS[self.setting.workload]
        return floor_of(outcome.costs, task, self.setting.kind, self.rates)


def hold(
    setting: Setting, entries: Sequence[Entry], rates: Rates, say: Callable[[str], None]
) -> Contest:
    """Runs a class.

    Args:
        setting: what is run.
        entries: who takes part.
        rates: the best rates of the machine with so many threads; improved by what is seen now.
        say: told what is going on.

    Raises:
        ChildError: the model cannot be made.
    """
    (setting.work / "logs").mkdir(parents=True, exist_ok=True)
    load = _load_average()
    make_model(setting, say)
    outcomes = [Outcome(entry) for entry in entries]
    for outcome in outcomes:
        with _out_on_failure(outcome):
            _prepare(outcome.entry, setting, say)
    rates.take(_rates(setting))
    race = _race(setting, outcomes, say)
    reference = json.loads(setting.job(entries[0]).reference.read_text(encoding="utf-8"))
    for outcome in outcomes:
        if outcome.entry.is_ours and not outcome.failure:
            _describe(outcome, setting)
    return Contest(setting, outcomes, race, reference, rates, (load, _load_average()))


def make_model(setting: Setting, say: Callable[[str], None]) -> None:
    """Makes the workload's model and reference, where they are not there.

    Raises:
        ChildError: that fails.
    """
    job = Job(setting.workload, "eager", setting.threads, str(setting.work))
    if not job.reference.exists():
        say(f"making the model of {setting.workload}")
        command = [sys.executable, "-m", "tests.benchmarks.cpu.models", setting.workload, job.work]
        log = setting.work / "logs" / f"{setting.workload}-model.log"
        run_to_end(command, job, log, _PREPARE_S)


def forget_ours(folder: Path) -> None:
    """Deletes what ours made of a workload's model, by an earlier version perhaps."""
    for marker in folder.glob(f"ours-*{_PREPARED}"):
        marker.unlink()
    shutil.rmtree(folder / BUNDLE, ignore_errors=True)


@contextmanager
def _out_on_failure(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except ChildError as error:
        outcome.failure = str(error)


def _prepare(entry: Entry, setting: Setting, say: Callable[[str], None]) -> None:
    python = entry.python(setting.rivals)
    if python is None:
        raise ChildError(
            f"no environment {entry.environment}: `make bench-rivals RIVALS=FOLDER` makes it, "
            "--rivals FOLDER finds it"
        )
    job = setting.job(entry)
    done = job.folder / f"{entry.module}-{entry.form}{_PREPARED}"
    if entry.prepares and not done.exists():
        say(f"preparing {entry.title}")
        command = command_of(python, "prepare", entry.module, job)
        run_to_end(command, job, setting.log(entry, "prepare"), _PREPARE_S)
        done.touch()


def _race(setting: Setting, outcomes: Sequence[Outcome], say: Callable[[str], None]) -> Race:
    """Loads everyone, lets them warm up, and runs the rounds."""
    children: dict[str, Child] = {}
    count = WORKLOADS[setting.workload].tokens

    def turn(title: str) -> Turn:
        time.sleep(_SETTLE_S)
        return _turn(children[title].turn(count, _TURN_S))

    try:
        for outcome in (each for each in outcomes if not each.failure):
            say(f"loading {outcome.entry.title}")
            child = children[outcome.entry.title] = _start(outcome.entry, setting)
            with _out_on_failure(outcome):
                _warm_up(outcome, child, count)
        racing = {each.entry.title: each for each in outcomes if not each.failure}
        say(f"rounds of {len(racing)}")
        race = run_rounds(
            list(racing), turn, seconds=setting.seconds, least=setting.rounds, failure=ChildError
        )
        for title, outcome in racing.items():
            with _out_on_failure(outcome):
                if title in race.failures:
                    raise ChildError(race.failures[title])
                outcome.peak_mb = children[title].finish()["peak_mb"]
    finally:
        for child in children.values():
            child.kill()
    return race


def _start(entry: Entry, setting: Setting) -> Child:
    python, job = entry.python(setting.rivals), setting.job(entry)
    assert python is not None, "it was prepared with it"
    command = command_of(python, "serve", entry.module, job)
    return Child(command, job, setting.log(entry, "serve"))


def _warm_up(outcome: Outcome, child: Child, count: int) -> None:
    loaded = child.answer(_LOAD_S)
    outcome.import_ms, outcome.load_ms = loaded["import_ms"], loaded["load_ms"]
    outcome.versions = loaded["versions"]
    turns = [child.turn(count, _FIRST_TURN_S) for _ in range(_WARM_UPS)]
    outcome.first_call_ms = turns[0]["first_ms"]
    made = len(turns[-1]["tokens"])
    if made != count:
        raise ChildError(f"made {made} tokens, not {count}")


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
    """Measures the machine in a process of its own, pinned as the contenders are."""
    job = Job(setting.workload, "", setting.threads, str(setting.work))
    command = [sys.executable, "-m", "tests.benchmarks.cpu.floor", str(setting.threads)]
    log = setting.work / "logs" / f"floor-{setting.threads}.log"
    return Rates.from_json(run_to_end(command, job, log, _LOAD_S))


def _describe(outcome: Outcome, setting: Setting) -> None:
    """Adds what only ours has: costs and overhead."""
    job = setting.job(outcome.entry)
    graphs = open_bundle(bundle_path(job)).graphs(job.form)
    outcome.costs = {role.value: graph.cost for role, graph in graphs.items()}
    command = [sys.executable, "-m", "tests.benchmarks.cpu.overhead", job.to_json()]
    log = setting.log(outcome.entry, "overhead")
    try:
        outcome.overhead = Overhead.from_json(run_to_end(command, job, log, _LOAD_S))
    except ChildError as error:
        outcome.remark = f"overhead not measured: {error}"

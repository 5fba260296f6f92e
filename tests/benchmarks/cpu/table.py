"""Writes the measurements of a class as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from hybrid_deploy.report import Column, render
from tests.benchmarks.cpu.contest import Contest, Outcome
from tests.benchmarks.cpu.goals import Goal, Measured, goals_of
from tests.benchmarks.cpu.race import Ratio, fastest, ratio, same_tokens

_TIMES = (
    Column("who", "who"),
    Column("total_ms", "total ms", digits=1),
    Column("least_ms", "least", digits=1),
    Column("encoder_ms", "encoder ms", digits=1),
    Column("first_ms", "first token ms", digits=1),
    Column("next_ms", "ms/next token", digits=3),
    Column("least_next_ms", "least", digits=3),
    Column("load_ms", "load ms", digits=0),
    Column("import_ms", "import ms", digits=0),
    Column("peak_mb", "peak MB", digits=0),
    Column("same", "same tokens"),
    Column("waited", "waited %", digits=0),
    Column("note", ""),
)
_FLOORS = (
    Column("who", "who"),
    Column("step_mb", "MB/step", digits=2),
    Column("floor_next_ms", "floor ms/next token", digits=3),
    Column("floors", "times the floor, least", digits=2),
    Column("median_floors", "median", digits=2),
    Column("floor_encoder_ms", "floor encoder ms", digits=1),
    Column("step_us", "us in the step", digits=0),
    Column("loop_us", "in Python", digits=1),
    Column("warm_us", "warm", digits=1),
    Column("refine_us", "in refine", digits=1),
)
_GOALS = (
    Column("who", "who"),
    Column("what", "goal"),
    Column("wanted", "wanted"),
    Column("measured", "measured"),
    Column("met", "met"),
)
Record = dict[str, object]


def section(contest: Contest) -> str:
    """Returns a class's section: times, ratios to the rivals, floors and goals."""
    setting = contest.setting
    rounds = max((len(turns) for turns in contest.race.turns.values()), default=0)
    threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    parts = [
        f"### {setting.workload}, {setting.kind}, {threads}: {rounds} rounds\n",
        render([_times(contest, outcome) for outcome in contest.outcomes], _TIMES, "md"),
    ]
    ours = [outcome for outcome in contest.finished if outcome.entry.is_ours]
    if ours:
        parts += [_ratio_table(contest, ours), *_own_tables(contest, ours)]
    return "\n".join(parts)


def _times(contest: Contest, outcome: Outcome) -> Record:
    entry = outcome.entry
    if outcome.failure:
        reason = outcome.failure.replace("|", "\\|").replace("\n", " ")
        return {"who": entry.title, "note": f"failed: {reason}"}
    turns = contest.race.turns[entry.title]
    encoders = [turn.encoder_ms for turn in turns if turn.encoder_ms is not None]
    busy = contest.setting.threads * sum(turn.total_ms for turn in turns)
    return {
        "who": entry.title,
        "total_ms": statistics.median(turn.total_ms for turn in turns),
        "least_ms": min(turn.total_ms for turn in turns),
        "encoder_ms": statistics.median(encoders) if encoders else None,
        "first_ms": statistics.median(turn.first_ms for turn in turns),
        "next_ms": statistics.median(turn.next_ms for turn in turns),
        "least_next_ms": _least_next_ms(contest, outcome),
        "load_ms": outcome.load_ms,
        "import_ms": outcome.import_ms,
        "peak_mb": outcome.peak_mb,
        "same": "/".join(map(str, _same_tokens(contest, outcome))),
        "waited": 100 * sum(turn.waited_ms for turn in turns) / busy,
        "note": "; ".join(filter(None, (entry.note, outcome.remark))),
    }


def _same_tokens(contest: Contest, outcome: Outcome) -> tuple[int, int]:
    """Returns the leading tokens that are correct in every round, and the number of all tokens."""
    turns, reference = contest.race.turns[outcome.entry.title], contest.reference
    return min(same_tokens(turn.tokens, reference) for turn in turns), len(reference)


def _least_next_ms(contest: Contest, outcome: Outcome) -> float:
    """Returns the shortest time of a token after the first.

    It is the difference of the shortest total and the shortest first token. The smallest difference
    of one round would come from a round in which the machine was slow for the first token only.
    """
    turns = contest.race.turns[outcome.entry.title]
    least = min(turn.total_ms for turn in turns) - min(turn.first_ms for turn in turns)
    return least / max(1, len(turns[0].tokens) - 1)


def _ratios(contest: Contest, outcome: Outcome) -> dict[str, Ratio]:
    """Returns the ratio of every rival's time to that of one of our variants, by title."""
    rivals = [rival.entry.title for rival in contest.finished if not rival.entry.is_ours]
    return {title: ratio(contest.race, outcome.entry.title, title) for title in rivals}


def _ratio_table(contest: Contest, ours: list[Outcome]) -> str:
    """Returns a table with a row for each rival and a column for each of our variants."""
    ratios = {outcome.entry.title: _ratios(contest, outcome) for outcome in ours}
    columns = [Column("who", "how many times as long as ours: median (quartiles) of all rounds")]
    columns += [Column(title, title) for title in ratios]
    records = []
    for rival in (each for each in contest.finished if not each.entry.is_ours):
        name = rival.entry.title
        cells = {title: _ratio_text(by_rival[name]) for title, by_rival in ratios.items()}
        records.append({"who": name, **cells})
    return render(records, columns, "md")


def _ratio_text(quartiles: Ratio) -> str:
    return f"{quartiles.median:.2f} ({quartiles.low:.2f}-{quartiles.high:.2f})"


def _own_tables(contest: Contest, ours: list[Outcome]) -> Iterator[str]:
    yield render([_floors(contest, outcome) for outcome in ours], _FLOORS, "md")
    goals = [
        {
            "who": outcome.entry.title,
            "what": goal.label,
            "wanted": goal.target,
            "measured": goal.measured,
            "met": "yes" if goal.met else "no",
        }
        for outcome in ours
        for goal in _goals(contest, outcome)
    ]
    yield render(goals, _GOALS, "md")


def _floors(contest: Contest, outcome: Outcome) -> Record:
    record: Record = {"who": outcome.entry.title}
    if outcome.overhead is not None:
        record["step_us"] = outcome.overhead.step_us
        record["loop_us"] = outcome.overhead.loop_us
        record["refine_us"] = outcome.overhead.refine_us
        record["warm_us"] = outcome.overhead.warm_us
    floor = contest.floor(outcome)
    if floor is None:
        return record
    turns = contest.race.turns[outcome.entry.title]
    median = statistics.median(turn.next_ms for turn in turns)
    return record | {
        "step_mb": floor.step_mb,
        "floor_next_ms": floor.next_ms,
        "floors": _least_next_ms(contest, outcome) / floor.next_ms,
        "median_floors": median / floor.next_ms,
        "floor_encoder_ms": floor.encoder_ms,
    }


def _goals(contest: Contest, outcome: Outcome) -> list[Goal]:
    setting, ratios = contest.setting, _ratios(contest, outcome)
    fastest_rival = fastest(ratios)
    rivals = [rival for rival in contest.finished if not rival.entry.is_ours]
    peaks = [rival.peak_mb for rival in rivals if rival.peak_mb is not None]
    floor, least = contest.floor(outcome), _least_next_ms(contest, outcome)
    measured = Measured(
        speed=None if fastest_rival is None else ratios[fastest_rival].median,
        floor_ratio=None if floor is None else least / floor.next_ms,
        load_ms=outcome.load_ms,
        peak_mb=outcome.peak_mb,
        least_rival_mb=min(peaks, default=None),
        loop_us=None if outcome.overhead is None else outcome.overhead.loop_us,
        same_tokens=_same_tokens(contest, outcome),
    )
    goals = goals_of(setting.workload, outcome.entry.form, setting.kind, measured)
    return [_with_rival_name(goal, fastest_rival) for goal in goals]


def _with_rival_name(goal: Goal, fastest_rival: str | None) -> Goal:
    """Returns the goal with the fastest rival's name in its label."""
    label = goal.label.replace("the fastest rival", f"the fastest rival ({fastest_rival})")
    return Goal(label, goal.target, goal.measured, goal.met)

"""The results of the zoo as tables and as a Markdown page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Literal

from hybrid_deploy.report import Column, render
from tests.kept_results import Dated
from tests.models.zoo.check import NEWEST_OPSET, TARGET, Result
from tests.models.zoo.runner.origin import ZooOrigin

_TERMINAL_WIDTH, _PAGE_WIDTH = 36, 240  # largest number of characters of a verdict


def page(results: Sequence[Dated[Result]], origin: ZooOrigin, chosen: int) -> str:
    """Returns the tables as a Markdown page with days, machine, versions and command.

    Args:
        results: results, all of one origin.
        origin: the origin of every result.
        chosen: number of models that the command names; the others are not checked yet.
    """
    every = [dated.result for dated in results]
    days = sorted({dated.day for dated in results})
    seconds = sum(result.seconds or 0.0 for result in every)
    command = " ".join(["python -m tests.models.zoo", *map(shlex.quote, sys.argv[1:])])
    missing = chosen - len(results)
    return (
        "# The zoo\n\n"
        "Models written the ordinary way, without a KV cache, exported and compared with\n"
        "themselves: the module's full re-run over every sequence alone, against ONNX Runtime's\n"
        "steps, greedy, batches of one and three, prompts of unequal length, two input sizes.\n"
        "Step and re-run are medians at 64 tokens on one thread. Other models must be refused,\n"
        "each with the words and the line that it lists.\n\n"
        f"{summary(every)}\n"
        + (f"{missing} of {chosen} models are not checked yet.\n" if missing else "")
        + f"\n{' to '.join(dict.fromkeys((days[0], days[-1])))}, {seconds / 60:.0f} minutes of "
        f"checks in all, {origin.machine}, {origin.packages}.\n"
        f"SHA-256 of the sources that made every row: {origin.sources[:16]}. Last command:\n"
        f"`{command}`\n\n{_tables(every, origin, 'md', _PAGE_WIDTH)}"
    )


def terminal(results: Sequence[Dated[Result]], origin: ZooOrigin) -> str:
    """Returns the tables for a terminal."""
    return _tables([dated.result for dated in results], origin, "table", _TERMINAL_WIDTH)


def summary(results: Sequence[Result]) -> str:
    """Returns the numbers of models that are ok and that are refused as listed."""
    exported = [result for result in results if not result.refused]
    refused = [result for result in results if result.refused]
    tokens = sum(result.tokens or 0 for result in exported if result.ok)
    worst = max((r.largest_difference or 0.0 for r in exported if r.ok), default=0.0)
    text = (
        f"{sum(result.ok for result in exported)} of {len(exported)} models are ok: {tokens} "
        f"tokens identical, largest difference of a logit {worst:.1e}."
    )
    if refused:
        as_listed = sum(result.ok for result in refused)
        text += f" {as_listed} of {len(refused)} others are refused as listed."
    return text


def _tables(
    results: Sequence[Result], origin: ZooOrigin, style: Literal["table", "md"], width: int
) -> str:
    exported = [_record(result, width) for result in results if not result.refused]
    refused = [
        {
            "name": result.name,
            "verdict": _cell(result.verdict, width),
            "words": _cell(result.words or "", width),
        }
        for result in results
        if result.refused
    ]
    words = [Column("name", "model"), Column("verdict", "verdict"), Column("words", "words")]
    tables = [render(exported, _columns(origin), style)] if exported else []
    return "\n".join(tables + ([render(refused, words, style)] if refused else []))


def _columns(origin: ZooOrigin) -> list[Column]:
    return [
        Column("name", "model"),
        Column("verdict", "verdict"),
        Column("difference", "logits differ by"),
        Column("tokens", "same tokens"),
        Column("step_ms", "step ms", digits=3),
        Column("rerun_ms", "re-run ms", digits=2),
        Column("ratio", "faster", digits=1),
        Column("nodes", "nodes", digits=0),
        Column("export_seconds", "export s", digits=1),
        Column("seconds", "check s", digits=1),
        *(Column(f"opset{o}", f"opset {o}") for o in origin.opsets if o != NEWEST_OPSET),
        *([Column("tensorrt", TARGET)] if origin.tensorrt else []),
    ]


def _record(result: Result, max_width: int) -> dict[str, object]:
    difference, step, rerun = result.largest_difference, result.step_ms, result.rerun_ms
    return {
        "name": result.name,
        "verdict": _cell(result.verdict, max_width),
        "difference": None if difference is None else f"{difference:.1e}",
        "tokens": None if result.tokens is None else f"{result.identical}/{result.tokens}",
        "step_ms": step,
        "rerun_ms": rerun,
        "ratio": None if step is None or rerun is None else rerun / step,
        "nodes": result.nodes,
        "export_seconds": result.export_seconds,
        "seconds": result.seconds,
        "tensorrt": None if result.tensorrt is None else _cell(result.tensorrt, max_width),
        **{f"opset{opset}": _cell(verdict, max_width) for opset, verdict in result.older.items()},
    }


def _cell(text: str, max_width: int) -> str:
    """Returns text that fits a cell of a table: one line, shortened."""
    text = " ".join(text.split())
    text = text if len(text) <= max_width else f"{text[: max_width - 3]}..."
    return text

"""The page of a run: how many models are right, refused, wrong; the refusals by reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.benchmarks.fuzz_export.check import Outcome, Verdict, kind_of
from tests.kept_results import Dated, Origin

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
"""Packages that a result depends on."""

_SEEDS = 6
FAULTS = (
    Verdict.WRONG,
    Verdict.FALSE_REFUSAL,
    Verdict.INTERNAL,
    Verdict.TRACEBACK,
    Verdict.TIMEOUT,
)
"""Verdicts that a toolkit without faults never gets."""


def faults(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns the outcomes that are a fault of the toolkit, by seed."""
    return sorted((o for o in outcomes if o.verdict in FAULTS), key=lambda o: o.seed)


def verdict_table(outcomes: Sequence[Outcome]) -> str:
    """Returns the number of models of every verdict as a Markdown table."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    rows = [f"| {verdict.value} | {counts[verdict]} |" for verdict in Verdict]
    return "\n".join(["| result | models |", "|---|---:|", *rows])


def reason_table(outcomes: Sequence[Outcome]) -> str:
    """Returns the reasons of all that is not right as a Markdown table, the usual ones first."""
    seeds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.verdict is not Verdict.RIGHT:
            seeds[outcome.verdict.value, kind_of(outcome.reason)].append(outcome.seed)
    rows = [
        f"| {verdict} | {len(of)} | {_cell(reason)} | {', '.join(map(str, sorted(of)[:_SEEDS]))} |"
        for (verdict, reason), of in sorted(
            seeds.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1])
        )
    ]
    return "\n".join(["| result | models | reason | seeds |", "|---|---:|---|---|", *rows])


def page(checked: Sequence[Dated[Outcome]], command: str, origin: Origin) -> str:
    """Returns the page in Markdown.

    Args:
        checked: the outcome of each seed, with its day.
        command: command that printed it.
        origin: what every outcome depends on.
    """
    outcomes = [dated.result for dated in checked]
    days = [dated.day for dated in checked]
    when = " to ".join(sorted({min(days), max(days)}))
    compared = sum(outcome.compared for outcome in outcomes)
    wrong = sum(outcome.wrong != "none" for outcome in outcomes)
    return f"""# Random models through the exporter

Every seed is a small encoder-decoder model of random parts: norms, activations, attention, masks,
positions, input sizes. *right*: tokens and logits of the bundle equal the module's, at other sizes,
batches and prompts than the example's, in every graph. *refused*: the export ended with one line
that says why, and is true. *unusable*: the module itself fails or reacts to nothing, so it says
nothing. Faults are *WRONG*, a bundle that differs; *FALSE REFUSAL*, a line that is not true;
*INTERNAL*, a failed step of the exporter itself; *TRACEBACK*, any other exception; *TIMEOUT*.

{wrong} of the models are wrong on purpose: not causal, random, stateful, or they mix their batch.

    {command}

{len(outcomes)} models, {compared} rows of logits compared, {when}, {origin.machine},
{origin.packages}.
SHA-256 of the sources that made every outcome: {origin.sources[:16]}.

{verdict_table(outcomes)}

{reason_table(outcomes)}
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

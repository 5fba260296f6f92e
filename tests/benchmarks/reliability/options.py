"""Hostile options and arguments of the documented functions: a result, or one error of ours."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import hybrid_deploy
from hybrid_deploy.runtime.session.session import Session
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.trials import FaultError, row_of_trials

_PLANTED = -1

NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 7, 8, 10, 256, 257, -1, -(2**31), 2**31, 2**63, 2**64, 10**30, 0.5, 1.0, -0.0,
    1e-300, 1e300, float("nan"), float("inf"), -float("inf"), 10**400, True, False, "3", None, [],
    (1,), b"1", np.int64(2), np.float32(0.5), np.uint8(1), np.array(2), np.array([1, 2]), 2j,
)  # fmt: skip
PATTERNS: tuple[Any, ...] = (
    "[a-h]+", "a*", "", "(", "[", "a{99999999}", "(a{900}){900}", "(((a{90}){90}){90}){90}",
    "(" * 3000 + ")" * 3000, "(?:" * 9000, "(a+)+$", "(a*)*b", "(?=a)", "(?<=a)b", r"\1", r"(\1)",
    "(?R)", "(?:(?R))", "(?P<x>a)(?P=x)", "\x00", "\ud800", "[\u202e]", r"\p{L}+", "a" * 10_001,
    "|".join("abcdefgh"), "(?i)[A-H]+", "(?b)", "{", r"\L<x>", "(?e)(abc){e<=9}", b"a", 3, ["a"],
)  # fmt: skip
WORDS: tuple[Any, ...] = (
    "", "a", "\x00", "\ud800", "x" * 300, "a/b", "../a", "\u202e", "日本", 3, None, b"a", ["a"],
    Path("a"), "fp32", "onnxruntime", "tensorrt", "*", "~", "fp16", "int8",
)  # fmt: skip


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Calls the documented functions `count` times with hostile arguments.

    Args:
        count: number of calls.
        seed: seed of the first one.
        bundle: bundle that is used, never changed; None exports a tiny one.
    """
    return row_of_trials(
        "hostile options and arguments of the API",
        "options set behind the back of their checks",
        OptionTrial,
        range(seed, seed + count),
        (_PLANTED,),
        bundle=bundle,
    )


@dataclass(frozen=True)
class OptionTrial:
    """Calls one documented function with hostile arguments.

    Attributes:
        bundle: the bundle that is used.
        scratch: folder for copies and other files.
    """

    bundle: Path
    scratch: Path

    def __call__(self, seed: int) -> str:
        """Returns which function gave a result.

        Raises:
            HybridDeployError: the arguments were refused.
        """
        rng = random.Random(seed)
        call = _planted if seed == _PLANTED else rng.choice(_CALLS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(self, rng)
        return f"{call.__name__.strip('_')}"

    @property
    def page(self) -> Path:
        """The golden picture of the bundle."""
        return self.bundle / "golden" / "page.png"


@lru_cache(maxsize=1)
def _session(bundle: Path) -> Session:
    return hybrid_deploy.load_session(bundle, threads=1)


def _planted(trial: OptionTrial, rng: random.Random) -> None:
    options = hybrid_deploy.GenerateOptions()
    object.__setattr__(options, "beams", "many")
    _session(trial.bundle).run_files([trial.page], options=options)


def _options(rng: random.Random) -> hybrid_deploy.GenerateOptions:
    """Returns options, of which a few are hostile."""
    ids = ((), (1,), (3, 4), (10,), (11,), (-1,), (2**40,), ("3",), (1.5,), [3], "34", 3)
    choices: dict[str, tuple[Any, ...]] = {
        "stop": ((), ("a",), ("",), "a", ["b"], (1,), ("\ud800",), ("x" * 100_000,)),
        "allowed": (*PATTERNS, lambda tokens: [3, 4], lambda tokens: [99], lambda tokens: "34"),
        "suppressed": ids,
        "forced": ({}, {1: 3}, {2: 11}, {-1: 3}, {1: "x"}, {10**9: 3}, {"1": 3}, [(1, 3)], 3),
        "early_stopping": (True, False, "never", "x", 1, 2, None, []),
        "scores": (True, False, 1, None, "x"),
        "seed": (*NUMBERS, (1,), (1, 2), (), (-1,), [1]),
    }
    names = rng.sample(
        sorted(hybrid_deploy.GenerateOptions.__dataclass_fields__), rng.choice((1, 1, 2, 4))
    )
    values: dict[str, Any] = {name: rng.choice(choices.get(name, NUMBERS)) for name in names}
    if "seed" in values and rng.random() < 0.8:
        values.setdefault("temperature", rng.choice((0.5, 1.0, 1e-30, 1e30)))
    return hybrid_deploy.GenerateOptions(**values)


def _run(trial: OptionTrial, rng: random.Random) -> None:
    options = _options(rng)
    _session(trial.bundle).run_files([trial.page] * rng.choice((1, 1, 3)), options=options)


def _stream(trial: OptionTrial, rng: random.Random) -> None:
    options = _options(rng)
    with _session(trial.bundle).stream([trial.page], options=options) as stream:
        for _ in stream:
            pass


def _prompt(trial: OptionTrial, rng: random.Random) -> None:
    prompts: tuple[Any, ...] = (
        (), (3,), [1, 3], np.array([1, 3]), np.array([]), np.array([[1]]), np.array([1.5]), "13",
        b"13", (1.5,), ("1",), (None,), (2**70,), (-1,), (11,), range(3, 5), {3: 4}, 3, (True,),
        [3] * 7, [3] * 8, [3] * 100_000, iter([3]), np.array(3), np.array([3], np.uint8),
    )  # fmt: skip
    _session(trial.bundle).run_files([trial.page], prompt=rng.choice(prompts))


def _paths(trial: OptionTrial, rng: random.Random) -> None:
    page = trial.page
    paths: tuple[Any, ...] = (
        str(page), page, [str(page)], (page,), [], None, 3, [None], [3], [b"x"], ["\x00"],
        ["x" * 300], ["a/" * 3000], ["\ud800.png"], [trial.bundle], ["/dev/zero"], ["/dev/null"],
        [""], ["."],
        [page] * 9, {"image": 3}, iter([page]), ["/proc/self/mem"], [str(page) + "/x"],
    )  # fmt: skip
    texts: tuple[Any, ...] = (None, None, None, ["a"], "a", [3], [])
    session = _session(trial.bundle)
    rng.choice((session.run_files, session.prepare))(rng.choice(paths), texts=rng.choice(texts))


def _arrays(trial: OptionTrial, rng: random.Random) -> None:
    right = np.zeros((1, 1, 8, 16), np.float32)
    arrays: tuple[Any, ...] = (
        right, right.astype(np.float64), right[0], right[..., :0], right[:0],
        np.repeat(right, 9, 0), right.tolist(), None, 3, "x", np.array("x"), np.array(None),
        right + np.nan, right[..., ::-1],
        np.asfortranarray(np.repeat(right, 2, 3)), np.zeros((1, 1, 8, 65), np.float32),
        right.astype(">f4"), np.ma.masked_array(right), right.astype(object),
    )  # fmt: skip
    name = rng.choice(("image", "image", "image", "x", "", 3))
    value = rng.choice(arrays)
    inputs: Any = rng.choice(({name: value}, {name: value}, {name: value, "y": value}, {}, value))
    session = _session(trial.bundle)
    if rng.random() < 0.3:
        with session.encode(inputs) as encoded:
            session.run_encoded(encoded, options=_options(rng))
    else:
        session.run_arrays(inputs)


def _many(trial: OptionTrial, rng: random.Random) -> None:
    session = _session(trial.bundle)
    items = rng.choice(
        ([trial.page] * 3, [trial.page, "x"], [3], [{"image": 3}], str(trial.page), 3)
    )
    sizes = {"batch": rng.choice(NUMBERS), "ahead": rng.choice((1, 2, rng.choice(NUMBERS)))}
    outcomes = session.run_many(items, **sizes)  # type: ignore[arg-type]
    for outcome in outcomes:
        if (outcome.error is None) is (outcome.result is None):
            raise FaultError("an outcome has neither a result nor an error")


def _load(trial: OptionTrial, rng: random.Random) -> None:
    paths: tuple[Any, ...] = (*WORDS, trial.bundle, str(trial.bundle), trial.page, "/dev/null", "/")
    options: dict[str, Any] = {
        "variant": rng.choice(("fp32", rng.choice(WORDS))),
        "backend": rng.choice(("onnxruntime", rng.choice(WORDS))),
        "threads": rng.choice((None, 1, rng.choice(NUMBERS))),
    }
    path = rng.choice((trial.bundle, rng.choice(paths)))
    hybrid_deploy.load_session(path, **options)


def _open(trial: OptionTrial, rng: random.Random) -> None:
    path: Any = rng.choice((*WORDS, "/", trial.page, str(trial.bundle)))
    hybrid_deploy.open_bundle(path)


def _profile(trial: OptionTrial, rng: random.Random) -> None:
    files: Any = rng.choice(([trial.page], [], str(trial.page), [3], 3, ["x"]))
    sizes = {"runs": rng.choice((1, 2, *NUMBERS)), "warmup": 0, "batch": rng.choice((1, *NUMBERS))}
    if any(isinstance(size, (int, np.integer)) and size > 1000 for size in sizes.values()):
        return  # what is asked for is done, for as long as it takes
    hybrid_deploy.profile_session(_session(trial.bundle), files, **sizes)


def _quantize(trial: OptionTrial, rng: random.Random) -> None:
    copied = trial.scratch / "copied.bundle"
    if not copied.exists():
        shutil.copytree(trial.bundle, copied)
    quantize = hybrid_deploy.quantize_bundle
    options: dict[str, Any] = {
        "name": rng.choice(("..", "golden", "", "/x", "\x00", "x" * 65, 3)),
        "block_size": rng.choice((None, *NUMBERS)),
        "max_drop": rng.choice((None, *NUMBERS)),
    }
    path: Any = rng.choice((copied, str(copied), 3, None))
    quantize(path, rng.choice(WORDS), **options)


def _tokens(trial: OptionTrial, rng: random.Random) -> None:
    _session(trial.bundle).prompt_tokens(rng.choice(WORDS))


_CALLS: tuple[Callable[[OptionTrial, random.Random], None], ...] = (
    _run, _run, _run, _run, _stream, _prompt, _paths, _arrays, _many, _load, _open, _profile,
    _quantize, _tokens,
)  # fmt: skip

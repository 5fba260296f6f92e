"""Checks the conditions on varying sizes that a trace assumed.

A Python branch on a size takes one side during the trace, and the graph keeps only that side:

    if width % 8: x = F.pad(x, ...)    traced at width 64    the guard Eq(Mod(width, 8), 0)

`torch.export` drops such a guard from the program. Here each guard is evaluated at the declared
sizes. A guard of the user's Python that fails at one of them is refused with its line. A guard of
PyTorch's own operators (the layout of a tensor, a broadcast) seldom changes the result, so the
sizes at which it fails are returned, for the parity gate to run.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

from hybrid_deploy.contract import BATCH_DIM
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.trace.refusal import is_user_file

Sizes = Mapping[str, int]
"""Size of each varying dimension, by its name."""

CHECKED_BATCHES = (*range(1, 9), 16, 33, 64, 1000)
"""Batch sizes for which guards are evaluated: a graph runs with any."""

_CHECKED_SIZES = 4096  # of one axis; a longer range is sampled evenly, its ends included
_CHECKED_SIZES_OF_SEVERAL = 96  # of each axis, in a guard on several
_LONGEST_CONDITION = 120
_MULTIPLES: tuple[int, ...] = (
    *range(2, 17),
    24,
    28,
    32,
    48,
    64,
    96,
    128,
)  # that an error may propose
_PYTHON_LAYERS = str(Path(torch.__file__).parent / "nn")  # its branches are those of a model
_SYM_NODE = "sym_node.py"
_MACHINERY = ("/fx/experimental/", "/torch/__init__.py", "/utils/_sympy/", "/trace/size_guards.py")
_TRACERS = ("/export/trace/capture.py", "/export/lowering/torch_to_onnx.py")
_FROM_CPP = ("guard_bool", "guard_int", "guard_float", "expect_true", "guard_size_oblivious")


@dataclass(frozen=True)
class SizeGuard:
    """A condition on varying sizes that held for the example of a trace.

    Attributes:
        condition: the condition, in the symbols of the trace.
        line: the user's line that asked for it, as `file:line`; empty if no line is the user's.
        is_branch: whether Python code of the model asked, rather than an operator of PyTorch.
        env: the trace's symbols and what it knows of them.
    """

    condition: Any
    line: str
    is_branch: bool
    env: ShapeEnv


@dataclass(frozen=True)
class DeclaredSizes:
    """The sizes for which an export has to hold.

    Attributes:
        ranges: sizes of each varying dimension in ascending order, by its name.
        uncertain: sizes at which a guard of PyTorch's own operators does not hold; the parity gate
            runs them. Checks of traces add to it.
    """

    ranges: Mapping[str, Sequence[int]]
    uncertain: list[Sizes] = field(default_factory=list)

    def check(self, log: GuardLog, env: ShapeEnv, exprs: Mapping[str, Any], part: str) -> None:
        """Evaluates the guards of a trace at the declared sizes.

        Args:
            log: the recorded guards.
            env: the symbols of the traced program; guards of other traces are left out.
            exprs: size of each varying dimension in those symbols, a number if the trace fixes it.
            part: what was traced, for messages, such as `encode()`.

        Raises:
            UnsupportedModelError: a Python branch on a size takes another side at a declared size,
                or the trace fixes a size that varies.
        """
        _refuse_fixed_sizes(log, exprs, part)
        symbols = self.symbols_of(exprs)
        failing = [
            (guard, condition, counterexample)
            for guard in log.guards
            if guard.env is env
            and symbols.keys() >= (condition := _replaced(guard)).free_symbols
            and (counterexample := _counterexample(condition, symbols)) is not None
        ]
        branches = [entry for entry in failing if entry[0].is_branch]
        if branches:
            conditions = [condition for _, condition, _ in branches]
            guard, condition, sizes = branches[0]
            raise _branch_error(guard, condition, symbols, sizes, part, conditions)
        for _, _, sizes in failing:
            named = {symbols[s].name: value * symbols[s].factor for s, value in sizes.items()}
            if named not in self.uncertain:
                self.uncertain.append(named)

    def symbols_of(self, exprs: Mapping[str, Any]) -> dict[Any, Symbol]:
        """Returns the sizes of the symbols that are a dimension, or a fraction of one.

        Args:
            exprs: size of each varying dimension in the symbols of a trace.
        """
        symbols: dict[Any, Symbol] = {}
        for name, expr in exprs.items():
            if name not in self.ranges or len(expr.free_symbols) != 1:
                continue
            (symbol,) = expr.free_symbols
            factor = expr.coeff(symbol)
            if factor.is_Integer and expr == factor * symbol:
                count = int(factor)
                values = [size // count for size in self.ranges[name] if size % count == 0]
                symbols.setdefault(symbol, Symbol(name, values, count))
        return symbols


@dataclass
class GuardLog:
    """The guards of the traces that ran while they were recorded."""

    guards: list[SizeGuard] = field(default_factory=list)


@dataclass(frozen=True)
class Symbol:
    """A symbol of a trace.

    Attributes:
        name: name of the dimension.
        values: values of the symbol.
        factor: the size of the dimension is this many times the value.
    """

    name: str
    values: Sequence[int]
    factor: int

    def sampled(self, count: int) -> Sequence[int]:
        """Returns the values to check in an expression of `count` symbols."""
        return _sample(self.values, _CHECKED_SIZES if count == 1 else _CHECKED_SIZES_OF_SEVERAL)

    def text(self, value: int) -> str:
        """Returns how a message calls a value of the symbol, as `width 90`."""
        return f"{self.name} {value * self.factor}"


@contextmanager
def record_guards() -> Iterator[GuardLog]:
    """Records each guard of a trace with the line of the model that asked for it."""
    log = GuardLog()
    original = ShapeEnv._log_guard

    def log_guard(self: ShapeEnv, prefix: str, g: Any, forcing_spec: bool) -> None:
        if "suppressed" not in prefix:
            log.guards.append(_guard(g, self, sys._getframe(1)))
        original(self, prefix, g, forcing_spec)

    ShapeEnv._log_guard = log_guard  # type: ignore[method-assign]
    try:
        yield log
    finally:
        ShapeEnv._log_guard = original  # type: ignore[method-assign]


def fixing_line(log: GuardLog) -> str:
    """Returns the model's line that makes a varying size constant, as `file:line: `, or no text."""
    lines = [guard.line for guard in log.guards if guard.line and _is_fixing(guard)]
    return f"{lines[0]}: " if lines else ""


def fixed_size(part: str, names: Collection[str], size: object = "one size") -> str:
    """Returns why a trace that fixes sizes is refused, and what to do, as a sentence.

    Args:
        part: what was traced, such as `encode()`.
        names: names of the dimensions that are fixed.
        size: the size that the trace takes, if it is known.
    """
    declared = sorted(set(names) - {BATCH_DIM})
    reason = (
        f"{part} takes {size} only of {', '.join(declared) or 'the batch'}, which has to vary: it "
        "is compared with a number, or used as a Python number, as int(), len(), torch.vmap and "
        "F.affine_grid do"
    )
    if declared:
        return f"{reason}; compute with tensors and sizes as they are, or declare no dynamic axis"
    return f"{reason}; compute a whole batch of any size at once with tensors"


def _refuse_fixed_sizes(log: GuardLog, exprs: Mapping[str, Any], part: str) -> None:
    """Refuses a trace that fixes a size which varies, with the line that fixes it."""
    for name, expr in exprs.items():
        if expr == 1:  # PyTorch takes sizes of 0 and 1 as constants
            raise UnsupportedModelError(
                f"{name} varies, but is 1 in the example, which PyTorch traces as a constant; give "
                "an example of another size"
            )
        if not getattr(expr, "free_symbols", ()):
            raise UnsupportedModelError(f"{fixing_line(log)}{fixed_size(part, {name}, expr)}")


def _is_fixing(guard: SizeGuard) -> bool:
    """Returns whether a guard is `symbol == number`."""
    condition = guard.condition
    return isinstance(condition, sympy.Eq) and any(
        side.is_Symbol and other.is_number
        for side, other in (condition.args, reversed(condition.args))
    )


def _replaced(guard: SizeGuard) -> Any:
    """Returns the condition in the symbols that the traced program still has."""
    condition = guard.condition
    for _ in range(8):  # a replacement may hold symbols that are replaced themselves
        replaced = condition.xreplace(guard.env.replacements)
        if replaced == condition:
            break
        condition = replaced
    return condition


def _guard(condition: Any, env: ShapeEnv, frame: FrameType | None) -> SizeGuard:
    """Returns the guard that the code of a frame asks for."""
    from_cpp, innermost, line = False, "", ""
    while frame is not None and not line:
        if frame.f_code.co_filename.endswith(_TRACERS):  # below it is the caller of the export
            break
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file.endswith(_SYM_NODE) and function in _FROM_CPP:
            from_cpp = from_cpp or bool(frame.f_locals.get("file"))
        if not innermost and not _is_symbolic_machinery(file):
            innermost = file
        if file.endswith(_TRACERS):
            break  # beyond are the callers of the export
        if is_user_file(file):
            line = f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    is_python = is_user_file(innermost) or innermost.startswith(_PYTHON_LAYERS)
    return SizeGuard(condition, line, is_python and not from_cpp, env)


def _is_symbolic_machinery(file: str) -> bool:
    """Returns whether a file evaluates symbolic sizes, rather than asking for one."""
    return file.startswith("<") or any(part in file for part in _MACHINERY)


def compiled(
    expr: Any, symbols: Sequence[Any], names: Mapping[str, Any] = SYMPY_INTERP
) -> Callable[..., Any]:
    """Returns an expression of sizes as a function of the values of its symbols.

    Args:
        expr: the expression.
        symbols: its symbols, in the order of the function's arguments.
        names: what the names of functions in the printed expression mean.
    """
    text = PythonPrinter().doprint(expr)
    function: Callable[..., Any] = eval(f"lambda {', '.join(map(str, symbols))}: {text}", {**names})
    return function


def _counterexample(condition: Any, values: Mapping[Any, Symbol]) -> dict[Any, int] | None:
    """Returns values of a condition's symbols for which it does not hold, or None."""
    symbols = sorted(condition.free_symbols, key=str)
    holds = compiled(condition, symbols)
    for sizes in itertools.product(*(values[s].sampled(len(symbols)) for s in symbols)):
        try:
            if holds(*sizes):
                continue
        except (ZeroDivisionError, ValueError):  # the model has no output of this size
            pass
        return dict(zip(symbols, sizes, strict=True))
    return None


def _sample(sizes: Sequence[int], count: int) -> Sequence[int]:
    """Returns at most `count` of the sizes, spread evenly, the first and the last included."""
    if len(sizes) <= count:
        return sizes
    step = (len(sizes) - 1) / (count - 1)
    return [sizes[round(i * step)] for i in range(count)]


def _branch_error(
    guard: SizeGuard,
    condition: Any,
    symbols: Mapping[Any, Symbol],
    sizes: Mapping[Any, int],
    part: str,
    conditions: Sequence[Any],
) -> UnsupportedModelError:
    """Returns the error for a Python branch that takes another side at the given sizes."""
    names = {s: sympy.Symbol(symbols[s].name, integer=True) / symbols[s].factor for s in sizes}
    text = PythonPrinter().doprint(condition.xreplace(names))
    given = ", ".join(symbols[s].text(n) for s, n in sizes.items())
    multiple = _remedying_multiple(conditions, symbols)
    remedy = f"{symbols[next(iter(sizes))].name} a multiple of {multiple}"
    line = f"{guard.line}: " if guard.line else ""
    return UnsupportedModelError(
        f"{line}a Python branch of {part} on a varying size: the graph keeps the side for which "
        f"{text[:_LONGEST_CONDITION]}, but {given} takes the other one; write it without the "
        "branch (torch.where, or an unconditional F.pad, which may add 0), or narrow the range"
        + (f", or declare a multiple (MIN..MAX:MULTIPLE) that keeps {remedy}" if multiple else "")
    )


def _remedying_multiple(conditions: Sequence[Any], symbols: Mapping[Any, Symbol]) -> int | None:
    """Returns the least multiple of the only size for which all conditions hold, or None."""
    free = set().union(*(condition.free_symbols for condition in conditions))
    if len(free) != 1:
        return None
    symbol = symbols[free.pop()]
    for multiple in _MULTIPLES:
        values = [n for n in symbol.values if n * symbol.factor % multiple == 0]
        limited = {s: replace(symbol, values=values) for s in conditions[0].free_symbols}
        if len(values) > 1 and not any(_counterexample(c, limited) for c in conditions):
            return multiple
    return None

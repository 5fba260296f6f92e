"""The facts of several environments as one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from hybrid_deploy.report import Column, Record, render

MOST_MB = {"aarch64": 160.0, "x86_64": 175.0}
"""What the base install and ONNX Runtime may weigh, by machine, without bytecode."""


class Package(msgspec.Struct, frozen=True):
    """One installed distribution."""

    name: str
    version: str
    file_bytes: int
    bytecode_bytes: int


class Import(msgspec.Struct, frozen=True):
    """What one import takes, and what it loads that a device can do without."""

    statement: str
    wall_ms: float
    cpu_ms: float
    unwanted: tuple[str, ...]


class Reading(msgspec.Struct, frozen=True):
    """A variant against the golden samples."""

    variant: str
    opset: int
    verdict: str
    samples: int | None = None
    equal: int | None = None


class Facts(msgspec.Struct, frozen=True):
    """What `device.py` found."""

    python: str
    machine: str
    packages: tuple[Package, ...]
    imports: tuple[Import, ...]
    readings: tuple[Reading, ...]

    @property
    def file_mb(self) -> float:
        """What all packages weigh without bytecode, as after `pip install --no-compile`."""
        return sum(package.file_bytes for package in self.packages) / 1e6

    @property
    def bytecode_mb(self) -> float:
        """What their bytecode weighs."""
        return sum(package.bytecode_bytes for package in self.packages) / 1e6

    def version(self, name: str) -> str | None:
        """Of an installed package; None if it is not."""
        return next((each.version for each in self.packages if each.name == name), None)


PACKAGES = (
    Column("name", "package"),
    Column("version", "version"),
    Column("file_mb", "MB", digits=1),
    Column("bytecode_mb", "bytecode MB", digits=1),
)
IMPORTS = (
    Column("where", "where"),
    Column("statement", "import"),
    Column("cpu_ms", "CPU ms", digits=0),
    Column("wall_ms", "wall ms", digits=0),
    Column("unwanted", "loads besides"),
)
READINGS = (
    Column("where", "where"),
    Column("onnxruntime", "onnxruntime"),
    Column("opset", "opset", digits=0),
    Column("variant", "variant"),
    Column("equal", "samples equal"),
    Column("verdict", "verdict"),
)
SIZES = (
    Column("where", "where"),
    Column("onnxruntime", "onnxruntime"),
    Column("numpy", "numpy"),
    Column("base_mb", "base MB", digits=1),
    Column("cpu_mb", "with ONNX Runtime MB", digits=1),
    Column("bytecode_mb", "bytecode MB", digits=1),
)


def size_rows(found: Mapping[str, Facts], bases: Mapping[str, Facts]) -> list[Record]:
    """Weighs each environment, and the base install beside it where that was measured."""
    return [
        {
            "where": where,
            "onnxruntime": facts.version("onnxruntime"),
            "numpy": facts.version("numpy"),
            "base_mb": bases[where].file_mb if where in bases else None,
            "cpu_mb": facts.file_mb,
            "bytecode_mb": facts.bytecode_mb,
        }
        for where, facts in found.items()
    ]


def package_rows(facts: Facts) -> list[Record]:
    """Returns what each package takes, the largest first."""
    return [
        {
            "name": each.name,
            "version": each.version,
            "file_mb": each.file_bytes / 1e6,
            "bytecode_mb": each.bytecode_bytes / 1e6,
        }
        for each in facts.packages
        if each.file_bytes >= 50_000
    ]


def import_rows(found: Mapping[str, Facts]) -> list[Record]:
    """Returns every import of every environment."""
    return [
        {
            "where": where,
            "statement": f"`{each.statement}`",
            "cpu_ms": each.cpu_ms,
            "wall_ms": each.wall_ms,
            "unwanted": ", ".join(each.unwanted),
        }
        for where, facts in found.items()
        for each in facts.imports
    ]


def reading_rows(found: Mapping[str, Facts]) -> list[Record]:
    """Returns every variant in every environment."""
    return [
        {
            "where": where,
            "onnxruntime": facts.version("onnxruntime"),
            "opset": each.opset,
            "variant": each.variant,
            "equal": None if each.equal is None else f"{each.equal} of {each.samples}",
            "verdict": each.verdict,
        }
        for where, facts in found.items()
        for each in facts.readings
    ]


def failures(found: Mapping[str, Facts]) -> list[str]:
    """Says what is not as it should be: too large, too much loaded, or other tokens."""
    said = []
    for where, facts in found.items():
        most_mb = MOST_MB.get(facts.machine, math.inf)
        if facts.file_mb > most_mb:
            said.append(f"{where}: {facts.file_mb:.0f} MB, more than {most_mb:.0f}")
        for each in facts.imports:
            if each.unwanted:
                said.append(f"{where}: `{each.statement}` loads {', '.join(each.unwanted)}")
        for row in facts.readings:
            if row.equal is not None and row.equal != row.samples:
                said.append(f"{where}: {row.variant} of opset {row.opset} {row.verdict}")
    return said


def page(title: str, found: Mapping[str, Facts], bases: Mapping[str, Facts]) -> str:
    """Returns the page as Markdown."""
    said = failures(found)
    return "\n".join(
        [
            title,
            *_section("Installed", SIZES, size_rows(found, bases)),
            *_packages(found),
            *_section("Imports", IMPORTS, import_rows(found)),
            *_section("The digit reader", READINGS, reading_rows(found)),
            "Everything is as it should be." if not said else "\n".join(f"- {s}" for s in said),
            "",
        ]
    )


def _packages(found: Mapping[str, Facts]) -> Iterable[str]:
    for where, facts in found.items():
        yield from _section(f"What takes it: {where}", PACKAGES, package_rows(facts))


def _section(title: str, columns: Sequence[Column], rows: Sequence[Record]) -> list[str]:
    return [f"## {title}", "", render(rows, columns, "md")]

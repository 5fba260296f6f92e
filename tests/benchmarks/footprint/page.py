"""Writes the measurements of several environments as one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from hybrid_deploy.report import Column, Record, render

MOST_MB = {"aarch64": 160.0, "x86_64": 175.0}
"""Largest allowed MB of base install and ONNX Runtime without bytecode, by machine."""


class Package(msgspec.Struct, frozen=True):
    """Size of one installed package, in bytes."""

    name: str
    version: str
    file_bytes: int
    bytecode_bytes: int


class Import(msgspec.Struct, frozen=True):
    """Times of one import in milliseconds, and the unneeded packages that it loads."""

    statement: str
    wall_ms: float
    cpu_ms: float
    unwanted: tuple[str, ...]


class Reading(msgspec.Struct, frozen=True):
    """Result of one variant on the golden samples.

    Attributes:
        variant: name of the variant.
        opset: ONNX opset of its graphs.
        verdict: one line of `hybrid-deploy verify`.
        samples: number of golden samples; None if none was decoded.
        equal: number of samples with the expected tokens; None if none was decoded.
    """

    variant: str
    opset: int
    verdict: str
    samples: int | None = None
    equal: int | None = None


class Facts(msgspec.Struct, frozen=True):
    """Output of `device.py`: the measurements of one environment."""

    python: str
    machine: str
    packages: tuple[Package, ...]
    imports: tuple[Import, ...]
    readings: tuple[Reading, ...]

    @property
    def file_mb(self) -> float:
        """Size of all packages in MB without bytecode, as after `pip install --no-compile`."""
        return sum(package.file_bytes for package in self.packages) / 1e6

    @property
    def bytecode_mb(self) -> float:
        """Size of all bytecode in MB."""
        return sum(package.bytecode_bytes for package in self.packages) / 1e6

    def version(self, name: str) -> str | None:
        """Returns the version of a package; None if it is not installed."""
        return next((package.version for package in self.packages if package.name == name), None)


PACKAGES = (
    Column("name", "package"),
    Column("version", "version"),
    Column("file_mb", "MB", digits=1),
    Column("bytecode_mb", "bytecode MB", digits=1),
)
IMPORTS = (
    Column("where", "where"),
    Column("statement", "import", is_markdown=True),
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


def size_rows(measured: Mapping[str, Facts], bases: Mapping[str, Facts]) -> list[Record]:
    """Returns each environment's size, with that of its base install where it was measured."""
    return [
        {
            "where": where,
            "onnxruntime": facts.version("onnxruntime"),
            "numpy": facts.version("numpy"),
            "base_mb": bases[where].file_mb if where in bases else None,
            "cpu_mb": facts.file_mb,
            "bytecode_mb": facts.bytecode_mb,
        }
        for where, facts in measured.items()
    ]


def package_rows(facts: Facts) -> list[Record]:
    """Returns the size of each package from 50 kB up, in the order of the facts."""
    return [
        {
            "name": package.name,
            "version": package.version,
            "file_mb": package.file_bytes / 1e6,
            "bytecode_mb": package.bytecode_bytes / 1e6,
        }
        for package in facts.packages
        if package.file_bytes >= 50_000
    ]


def import_rows(measured: Mapping[str, Facts]) -> list[Record]:
    """Returns one row for each import in each environment."""
    return [
        {
            "where": where,
            "statement": f"`{timed.statement}`",
            "cpu_ms": timed.cpu_ms,
            "wall_ms": timed.wall_ms,
            "unwanted": ", ".join(timed.unwanted),
        }
        for where, facts in measured.items()
        for timed in facts.imports
    ]


def reading_rows(measured: Mapping[str, Facts]) -> list[Record]:
    """Returns one row for each variant in each environment."""
    return [
        {
            "where": where,
            "onnxruntime": facts.version("onnxruntime"),
            "opset": reading.opset,
            "variant": reading.variant,
            "equal": None if reading.equal is None else f"{reading.equal} of {reading.samples}",
            "verdict": reading.verdict,
        }
        for where, facts in measured.items()
        for reading in facts.readings
    ]


def failures(measured: Mapping[str, Facts]) -> list[str]:
    """Returns one line per fault: a large install, an unneeded import or different tokens."""
    lines = []
    for where, facts in measured.items():
        most_mb = MOST_MB.get(facts.machine, math.inf)
        if facts.file_mb > most_mb:
            lines.append(f"{where}: {facts.file_mb:.0f} MB, more than {most_mb:.0f}")
        for timed in facts.imports:
            if timed.unwanted:
                lines.append(f"{where}: `{timed.statement}` loads {', '.join(timed.unwanted)}")
        for reading in facts.readings:
            if reading.equal is not None and reading.equal != reading.samples:
                lines.append(
                    f"{where}: {reading.variant} of opset {reading.opset} {reading.verdict}"
                )
    return lines


def page(title: str, measured: Mapping[str, Facts], bases: Mapping[str, Facts]) -> str:
    """Returns the page as Markdown: sizes, packages, imports, decoded samples and faults."""
    faults = failures(measured)
    return "\n".join(
        [
            title,
            *_section("Installed", SIZES, size_rows(measured, bases)),
            *_packages(measured),
            *_section("Imports", IMPORTS, import_rows(measured)),
            *_section("The digit reader", READINGS, reading_rows(measured)),
            "Everything is as it should be."
            if not faults
            else "\n".join(f"- {fault}" for fault in faults),
            "",
        ]
    )


def _packages(measured: Mapping[str, Facts]) -> Iterable[str]:
    for where, facts in measured.items():
        yield from _section(f"Packages: {where}", PACKAGES, package_rows(facts))


def _section(title: str, columns: Sequence[Column], rows: Sequence[Record]) -> list[str]:
    return [f"## {title}", "", render(rows, columns, "md")]

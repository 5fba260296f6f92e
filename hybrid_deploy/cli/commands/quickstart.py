"""`hybrid-deploy quickstart`: every command in turn, on the reference model."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hybrid_deploy.bundle.atomic_write import make_parent, staged_folder, write_file
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.placement import check_file_output, check_folder_output
from hybrid_deploy.cli.options.common import FORCE
from hybrid_deploy.cli.options.paths import PATH
from hybrid_deploy.cli.output import log, log_lines, say
from hybrid_deploy.cli.progress import progress_bar
from hybrid_deploy.errors import BuildError, InputError, MissingDependencyError
from hybrid_deploy.report import render

if TYPE_CHECKING:
    from hybrid_deploy.export.reference.lines import Split

TARGETS = ("rtx:sm_86", "rtx:sm_89", "rtx:sm_120")
PRECISIONS = ("fp16", "int8", "int8-cpu")
BUILT = ("fp16", "int8")  # TensorRT refuses int8-cpu
_CALIBRATION_LINES = 64
_SHOWN_LINES = 6
_PROFILE_RUNS = 200
_LINE_FILE = re.compile(r"\d{4}\.png|labels\.csv")


@click.command(epilog="Example: hybrid-deploy quickstart --out quickstart")
@click.option(
    "--out", type=PATH, default=Path("quickstart"), show_default=True,
    help="Folder for the bundle, the lines and the picture.",
)  # fmt: skip
@FORCE
def quickstart(out: Path, force: bool) -> None:
    """Export, quantize, build, run, profile and compare the reference digit reader.

    The model reads lines of handwritten digits; every number is measured on this machine, on
    lines whose digits were never seen in training.
    """
    from hybrid_deploy.export.reference.lines import TEST_LINES

    bundle, readings = out / "digits.bundle", out / "readings.png"
    samples, held_out = out / "calibration", out / "lines"
    _check_outputs(bundle, (held_out, samples), readings, force)
    started_at = time.perf_counter()
    with _step("held-out and calibration lines"):
        lines = _write_lines(held_out, "test", TEST_LINES, force)
        _write_lines(samples, "train", _CALIBRATION_LINES, force)
    with _step("export, checked on every held-out line"):
        _export(bundle, force)
    for precision in PRECISIONS:
        with _step(f"quantize to {precision}"):
            _quantize(bundle, precision, samples)
    with _step(f"build TensorRT engines for {', '.join(TARGETS)}"):
        _build(bundle)
    with _step("run"):
        texts = _run(bundle, lines[:_SHOWN_LINES])
        write_file(readings, picture_of(lines[:_SHOWN_LINES], texts), force=force)
    with _step("profile"):
        _profile(bundle, lines)
    with _step("compare"):
        _compare(bundle, held_out)
    log_lines(_next_steps(out, time.perf_counter() - started_at))


def _check_outputs(bundle: Path, line_folders: Sequence[Path], readings: Path, force: bool) -> None:
    """Refuses every output that exists, or holds files of the user, before anything is written.

    Raises:
        OutputExistsError: one of them exists and `force` is false.
        UsageError: one of them is not replaced even with `force`.
    """
    from hybrid_deploy.cli.commands.export import check_output

    check_output(bundle, force)
    for folder in line_folders:
        check_folder_output(folder, force=force, check=_check_lines)
    check_file_output(readings, force=force)


def _check_lines(folder: Path, name: Path) -> None:
    """Checks that a folder holds nothing but lines of an earlier quickstart.

    Raises:
        InputError: it holds something else.
    """
    for path in sorted(folder.iterdir()):
        if not _LINE_FILE.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            raise InputError(
                f"{name} is not replaced: {path.name} in it is none of its lines; move that away, "
                "or name another output"
            )


def _write_lines(folder: Path, split: Split, count: int, force: bool) -> list[Path]:
    """Writes lines and their labels to a folder, and returns the paths of the pictures."""
    from hybrid_deploy.export.reference.job import write_lines

    make_parent(folder)
    with exclusive(folder), staged_folder(folder, force=force, check=_check_lines) as staging:
        names = [path.name for path in write_lines(staging, split, count)]
    return [folder / name for name in names]


@contextmanager
def _step(title: str) -> Iterator[None]:
    log_lines(f"\n== {title}")
    started_at = time.perf_counter()
    yield
    log(f"   {time.perf_counter() - started_at:.1f} s")


def _export(bundle: Path, force: bool) -> None:
    from hybrid_deploy.cli.commands.export import export_job
    from hybrid_deploy.export.reference.job import feature_map

    parity = export_job(feature_map(), bundle, force=force).parity
    log(
        f"   {parity.sequences} lines, {parity.steps} tokens identical to PyTorch's full re-run, "
        f"largest difference of a logit {parity.largest_difference:.1e}"
    )


def _quantize(bundle: Path, precision: str, samples: Path) -> None:
    from hybrid_deploy.calibration.quantize import quantize_bundle

    quantize_bundle(bundle, precision, samples)


def _build(path: Path) -> None:
    from hybrid_deploy.bundle.bundle import open_bundle
    from hybrid_deploy.runtime.engines.build import build_engine
    from hybrid_deploy.target import parse_target

    bundle = open_bundle(path)
    graphs = [(variant, role) for variant in BUILT for role in bundle.loop_graphs(variant)]
    engines = [(target, *graph) for target in TARGETS for graph in graphs]
    built, failed, size_bytes = 0, 0, 0
    with progress_bar("build", len(engines)) as bar:
        for done, (target, variant, role) in enumerate(engines, start=1):
            try:
                size_bytes += build_engine(bundle, variant, role, parse_target(target)).size_bytes
                built += 1
            except MissingDependencyError as error:
                log(f"   not built: {error}")
                return
            except BuildError as error:
                failed += 1
                log(f"   failed: {error}")
            bar("build", done, len(engines))
    log(f"   {built} engines built ({size_bytes / 1e6:.1f} MB), {failed} failed; none was run")


def _run(bundle: Path, files: Sequence[Path]) -> list[str]:
    from hybrid_deploy.runtime.session.session import load_session

    session = load_session(bundle)
    texts = []
    for file in files:
        (result,), _ = session.run_files([file])
        texts.append(result.text or "")
        say(f"{file}: {texts[-1]}")
    return texts


def _profile(bundle: Path, files: Sequence[Path]) -> None:
    from hybrid_deploy.cli.commands.profile import COLUMNS, records
    from hybrid_deploy.runtime.session.profile import profile_session
    from hybrid_deploy.runtime.session.session import load_session

    session = load_session(bundle, threads=1)
    with progress_bar("profile", _PROFILE_RUNS + 10) as bar:
        measured = profile_session(session, files, runs=_PROFILE_RUNS, warmup=10, progress=bar)
    say(render(records(measured), COLUMNS, "table"), nl=False)


def _compare(path: Path, samples: Path) -> None:
    from hybrid_deploy.bundle.bundle import open_bundle
    from hybrid_deploy.cli.commands.compare import check_rows, compare_rows
    from hybrid_deploy.cli.compare_output import columns_for
    from hybrid_deploy.labels import load_labels
    from hybrid_deploy.runtime.backends.probing import usable_backends

    bundle, labels, usable = open_bundle(path), load_labels(samples), usable_backends()
    pairs = [(variant, backend) for variant in bundle.manifest.variants for backend in usable]
    with progress_bar("compare", len(pairs) * len(labels)) as bar:
        rows = compare_rows(bundle, labels, pairs, threads=1, progress=bar)
    say(render(rows, columns_for(rows), "table"), nl=False)
    check_rows(rows, path)
    log(f"   {len(labels)} held-out lines one by one, 1 CPU thread, medians")


def picture_of(files: Sequence[Path], texts: Sequence[str]) -> bytes:
    """Returns a picture of the inputs with the decoded text below each, as a PNG file.

    Args:
        files: pictures, all of one height.
        texts: decoded text of each picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    from hybrid_deploy.runtime.preprocess.image import load_image

    scale, margin, caption = 2, 12, 26
    images = [load_image(file).convert("L") for file in files]
    width = max(image.width for image in images) * scale + 2 * margin
    row = images[0].height * scale + caption + margin
    picture = Image.new("L", (width, row * len(images) + margin), 255)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        top = margin + number * row
        large = image.resize((image.width * scale, image.height * scale))
        picture.paste(large, (margin, top))
        draw.text((margin, top + large.height + 2), f"read: {text}", fill=0, font=font)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _next_steps(out: Path, seconds: float) -> str:
    return f"""
Done in {seconds:.0f} s. The picture {out / "readings.png"} shows what was read. Next:
  hybrid-deploy inspect {out / "digits.bundle"}
  hybrid-deploy run {out / "digits.bundle"} {out / "lines" / "0000.png"} --variant int8
  hybrid-deploy export your_package.your_module:your_job -o your.bundle"""

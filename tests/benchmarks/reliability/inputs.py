"""Damaged and hostile input files of every kind: prepared, or refused in one line."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import time
import wave
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    EncoderInput,
    FilterBank,
    FramesInput,
    LogMel,
    PixelsInput,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.pixel_steps import Resize
from hybrid_deploy.runtime.preprocess.prepare import prepare
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import workshop
from tests.benchmarks.reliability.trials import Tally, run_trials

_PLANTED = -1

KINDS = ("sound", "npy", "npz", "picture", "text", "video")

_RATE = 16_000
_SOUNDS = (
    AudioInput("sound", _RATE, Waveform()),
    AudioInput("sound", _RATE, FilterBank(40), max_seconds=5.0),
    AudioInput("sound", _RATE, LogMel(20, 400, 160, 3200)),
)
_FRAMES = FramesInput("video", PixelsInput("frame", (Resize(8, 8),)), 4)


def check(
    count: int, seed: int, *, bundle: Path | None = None, kinds: tuple[str, ...] = KINDS
) -> Row:
    """Prepares `count` damaged or hostile files of each kind.

    Args:
        count: number of files of each kind.
        seed: seed of the first one.
        bundle: bundle that reads the pictures and archives; None exports a tiny one.
        kinds: kinds of files.
    """
    started_at = time.monotonic()
    tally, caught = Tally(), True
    with workshop(bundle) as (original, scratch):
        for kind in kinds:
            trial = InputTrial(kind, original, scratch)
            part, noticed = run_trials(trial, range(seed, seed + count), (_PLANTED,))
            tally.words.update(part.words)
            tally.faults += [f"{kind}, {fault}" for fault in part.faults]
            caught = caught and noticed
    return Row(
        name=f"damaged input files ({', '.join(kinds)})",
        count=count * len(kinds),
        result=tally.result(),
        faults=tally.shown_faults,
        control="numpy reads a damaged archive without our checks, for each kind",
        caught=caught,
        seconds=time.monotonic() - started_at,
    )


@dataclass(frozen=True)
class InputTrial:
    """Prepares a damaged file of one kind, and runs pictures and archives too.

    Attributes:
        kind: one of KINDS.
        bundle: bundle that runs pictures and archives.
        scratch: folder of the file.
    """

    kind: str
    bundle: Path
    scratch: Path

    def __call__(self, seed: int) -> str:
        """Returns that the file was accepted.

        Raises:
            HybridDeployError: the file was refused.
        """
        rng = random.Random(seed)
        if seed == _PLANTED:
            np.load(io.BytesIO(b"PK\x03\x04 and no more"))
        path = _MAKERS[self.kind](self.scratch, rng)
        if self.kind in ("picture", "npz"):
            _session(self.bundle).run_files([path])
        else:
            prepare([path], _spec(self.kind, rng), folder=_text_folder(self.scratch))
        return "accepted"


@lru_cache(maxsize=1)
def _session(bundle: Path) -> Session:
    return load_session(bundle, threads=1)


def _spec(kind: str, rng: random.Random) -> EncoderInput:
    if kind == "sound":
        return rng.choice(_SOUNDS)
    if kind == "text":
        return TextInput("text", "tokenizer.json", 64)
    return ArrayInput("image") if kind == "npy" else _FRAMES


@lru_cache(maxsize=1)
def _text_folder(scratch: Path) -> Path:
    """Returns a folder with a tokenizer that knows single bytes."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({letter: number for number, letter in enumerate(alphabet)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(scratch / "tokenizer.json"))
    return scratch


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Returns bytes with a few of them changed, cut or inserted, mostly at the begin."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 128)
        how = rng.random()
        if how < 0.7 and end:
            value = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            changed[rng.randrange(end)] = value
        elif how < 0.85:
            changed = changed[: rng.randrange(len(changed) + 1)]
        else:
            at = rng.randrange(len(changed) + 1)
            changed[at:at] = rng.randbytes(rng.randrange(9))
    return bytes(changed)


def _sound(scratch: Path, rng: random.Random) -> Path:
    width, channels = rng.choice((1, 2, 3, 4)), rng.choice((1, 2))
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setsampwidth(width)
        file.setnchannels(channels)
        file.setframerate(rng.choice((_RATE, _RATE, _RATE, 8000)))
        file.writeframes(rng.randbytes(width * channels * rng.choice((0, 1, 10, 800, 4000))))
    sound = content.getvalue()
    if rng.random() < 0.2:  # floats that are NaN, infinite or huge
        floats = np.array(
            [rng.choice((0.5, np.nan, np.inf, 1e38, -3.0)) for _ in range(900)], "<f4"
        )
        sound = sound[:20] + struct.pack("<HHIIHH", 3, 1, _RATE, 4 * _RATE, 4, 32)
        sound += b"data" + struct.pack("<I", floats.nbytes) + floats.tobytes()
    path = scratch / f"sound{rng.choice(('.wav', '.wav', '.flac', '.mp3'))}"
    path.write_bytes(damaged(sound, rng) if rng.random() < 0.9 else sound)
    if rng.random() < 0.03:  # two gigabytes that take no disk, of no declared length
        path.write_bytes(sound[:40] + b"\xff\xff\xff\xff")
        os.truncate(path, 1 << 31)
    return path


_HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 8, 16), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (10000000000000, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000,), }",
    "{'descr': '<U9', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': 'x', }",
    "{'descr': 'nonsense', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 8L), }",
    "[" * 3000 + "]" * 3000,
    "(" * 9000,
    "-" * 9000 + "1",
    "{" * 500,
    "'" + "\\x00" * 50,
    "\x00" * 60,
)


def _npy_content(rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        header = rng.choice(_HEADERS).encode("latin1") + b"\n"
        version = rng.choice((1, 1, 1, 2, 3, 9))
        size = struct.pack("<H" if version == 1 else "<I", len(header))
        return b"\x93NUMPY" + bytes((version, 0)) + size + header + rng.randbytes(512)
    content = io.BytesIO()
    dtype = rng.choice(("<f4", ">f4", "<f8", "<i8", "?", "<c8", "<f2"))
    shape = rng.choice(((1, 1, 8, 16), (1, 1, 8, 24), (2, 1, 8, 16), (0,), (), (1, 8, 16)))
    array = np.ones(shape, dtype)
    np.save(content, np.asfortranarray(array) if rng.random() < 0.3 else array)
    return content.getvalue()


def _npy(scratch: Path, rng: random.Random) -> Path:
    path = scratch / "array.npy"
    content = _npz_content(rng) if rng.random() < 0.1 else _npy_content(rng)
    path.write_bytes(damaged(content, rng) if rng.random() < 0.7 else content)
    return path


def _npz_content(rng: random.Random) -> bytes:
    content = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(content, "w", packing) as archive:
        for name in rng.choice((("image",), ("image", "mask"), ("x",), (), ("../image",))):
            archive.writestr(f"{name}.npy", _npy_content(rng))
    return content.getvalue()


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """Returns a small archive that unpacks to 1.3 GB."""
    content = io.BytesIO()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 8, 100000000), }\n"
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("image.npy", "w", force_zip64=True) as file,
    ):
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(80):
            file.write(bytes(16_000_000))
    return content.getvalue()


def _npz(scratch: Path, rng: random.Random) -> Path:
    path = scratch / "arrays.npz"
    if rng.random() < 0.005:
        path.write_bytes(_bomb())
        return path
    content = _npz_content(rng)
    if rng.random() < 0.2:  # another size, packing or set of flags than the member has
        at = content.rfind(b"PK\x01\x02")
        if at >= 0:
            field = at + rng.choice((8, 10, 16, 20, 24))
            content = content[:field] + rng.randbytes(4) + content[field + 4 :]
    path.write_bytes(damaged(content, rng) if rng.random() < 0.7 else content)
    return path


_FORMATS = {".png": "PNG", ".tiff": "TIFF", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP",
            ".jpg": "JPEG", ".ppm": "PPM", ".ico": "ICO", ".tga": "TGA"}  # fmt: skip
_MODES = ("L", "RGB", "RGBA", "1", "P", "I;16", "I", "F", "LA", "CMYK", "YCbCr", "LAB", "P;A")
_LONG_SIDE = 60_000
_WITH_LONG_SIDES = (".png", ".tiff", ".bmp", ".ppm")
_SIZES = (
    *((20, 8), (1, 1), (300, 3), (16, 60), (64, 16)),
    *((60_000, 1), (1, 60_000), (190_000, 2), (2, 190_000), (1_000_000, 1), (1, 1_000_000)),
)


def _picture(scratch: Path, rng: random.Random) -> Path:
    size = rng.choice(_SIZES)
    suffix = rng.choice(tuple(_FORMATS) if max(size) < _LONG_SIDE else _WITH_LONG_SIDES)
    exif = Image.Exif()
    exif[274] = rng.randrange(10)
    options: dict[str, Any] = {"exif": exif} if suffix in (".png", ".jpg", ".webp") else {}
    if suffix in (".gif", ".tiff", ".webp", ".png") and rng.random() < 0.3:
        more = rng.choice((1, 3, 300)) if max(size) < 1000 else 1
        options |= {"save_all": True, "append_images": [Image.new("L", size, 9)] * more}
    content = io.BytesIO()
    try:
        _of_mode(rng.choice(_MODES), size, rng).save(content, _FORMATS[suffix], **options)
    except (OSError, ValueError, struct.error):  # a format that has no such mode or size
        content = io.BytesIO()
        Image.new("L", size, 7).save(content, "PNG")
    path = scratch / f"picture{suffix}"
    if rng.random() < 0.1:
        return _no_file(path, rng)
    path.unlink(missing_ok=True)
    path.write_bytes(damaged(content.getvalue(), rng) if rng.random() < 0.8 else content.getvalue())
    return path


def _of_mode(mode: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Returns a picture of a mode of Pillow; `P;A` is a palette with a transparent colour."""
    grey = Image.new("L", size, rng.randrange(256))
    if mode == "LAB":  # Pillow converts no grey to it
        return Image.new("LAB", size, (rng.randrange(256), 128, 128))
    picture = grey.convert(mode.removesuffix(";A"))
    if mode == "P;A":
        picture.info["transparency"] = rng.choice((0, 255, bytes(range(256))))
    return picture


def _no_file(path: Path, rng: random.Random) -> Path:
    """Puts something with the name of a file there that is no regular file."""
    path = path.with_name(f"no-file-{path.name}")
    if path.is_symlink() or path.exists():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    kind = rng.choice(("pipe", "folder", "device", "dangling"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    return path


def _text(scratch: Path, rng: random.Random) -> Path:
    path = scratch / f"text{rng.choice(('.txt', '.txt', '.md'))}"
    pieces = ("a word ", "\x00", "\u202e", "\ufeff", "\n\n", "\x1b[2J", "é", "日本", "🏴", "\u200d")
    text = "".join(rng.choice(pieces) for _ in range(rng.choice((0, 1, 5, 60, 2000))))
    content = text.encode(rng.choice(("utf-8", "utf-8", "utf-16", "utf-32")))
    if rng.random() < 0.3:
        content = damaged(content, rng) + rng.choice((b"", b"\xed\xa0\x80", b"\xff"))
    if rng.random() < 0.005:
        content = rng.choice((b"a" * 30_000_000, b"word " * 300_000))
    path.write_bytes(content)
    return path


def _video(scratch: Path, rng: random.Random) -> Path:
    folder = scratch / "video"
    shutil.rmtree(folder, ignore_errors=True)
    if rng.random() < 0.4:
        return _picture(scratch, rng)
    folder.mkdir()
    for number in range(rng.choice((0, 1, 3, 9))):
        frame = _picture(scratch, rng)
        name = rng.choice((f"{number:03}{frame.suffix}", "x.txt", f"\udc80{number}.png"))
        how = rng.random()
        if how < 0.9 and frame.is_file():
            shutil.copy(frame, folder / name)
        elif how < 0.95:
            (folder / f"{number}.png").mkdir(exist_ok=True)
        else:
            (folder / f"{number}.png").symlink_to("nowhere")
    return folder


_MAKERS: dict[str, Callable[[Path, random.Random], Path]] = {
    "sound": _sound,
    "npy": _npy,
    "npz": _npz,
    "picture": _picture,
    "text": _text,
    "video": _video,
}

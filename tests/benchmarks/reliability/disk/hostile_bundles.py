"""Bundles, slots and names that try to lead a command out of its folders.

Every case changes a scene: `source.bundle`, which a stranger made, `slots` to install it into, and
`outside`, which no command may read from or change.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hybrid_deploy.bundle.paths import MANIFEST_FILE
from hybrid_deploy.bundle.release_record import RECORD_FILE
from hybrid_deploy.temporary_names import lock_name, temporary_name
from tests.benchmarks.reliability.tiny_bundle import manifest_of, record_of, sealed

Case = Callable[[Path], None]

VICTIM = "victim.onnx"
_STEP = "fp32/step.onnx"
_PAUSE_SECONDS = 0.01


def _names(path: str) -> Case:
    """Returns a case whose manifest calls a graph so, with the victim's hash."""

    def case(scene: Path) -> None:
        name = path.replace("OUTSIDE", str(scene / "outside"))
        bundle, content = scene / "source.bundle", (scene / "outside" / VICTIM).read_bytes()
        manifest = manifest_of(bundle)
        manifest["files"][name] = record_of(content)
        manifest["variants"]["fp32"]["step"]["file"] = name
        _seal(bundle, manifest)

    return case


def _lists(path: str, *, content: bytes = b"more") -> Case:
    """Returns a case with one more file in the bundle, which the manifest lists with its hash."""

    def case(scene: Path) -> None:
        bundle = scene / "source.bundle"
        (bundle / path).parent.mkdir(exist_ok=True)
        (bundle / path).write_bytes(content)
        manifest = manifest_of(bundle)
        manifest["files"][path] = record_of(content)
        _seal(bundle, manifest)

    return case


def _calls_variant(name: str) -> Case:
    """Returns a case whose only variant has another name."""

    def case(scene: Path) -> None:
        manifest = manifest_of(scene / "source.bundle")
        manifest["variants"] = {name: manifest["variants"].pop("fp32")}
        _seal(scene / "source.bundle", manifest)

    return case


def _replaces(path: str, make: Callable[[Path, Path], None]) -> Case:
    """Returns a case in which a path of the scene is replaced: `make` gets it and the victim's."""

    def case(scene: Path) -> None:
        target = scene / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        target.parent.mkdir(exist_ok=True)
        make(target, scene / "outside" / VICTIM)

    return case


def _two_forms(scene: Path) -> None:
    """Lists an e with an accent as one character, and as two: one name on other systems."""
    _lists("golden/caf\u00e9")(scene)
    _lists("golden/cafe\u0301")(scene)


def _hard_link(scene: Path) -> None:
    """Gives a file outside the content and a second name of a graph, which is no damage."""
    graph, victim = scene / "source.bundle" / _STEP, scene / "outside" / VICTIM
    victim.unlink()
    graph.rename(victim)
    os.link(victim, graph)


def _changing(scene: Path) -> None:
    """Rewrites a graph in place, right and wrong in turn, until the scene is removed."""
    graph = scene / "source.bundle" / _STEP
    right = graph.read_bytes()

    def rewrite() -> None:
        with suppress(OSError):
            while True:
                for content in (right[:-1] + b"x", right):
                    with graph.open("r+b") as file:
                        file.write(content)
                    time.sleep(_PAUSE_SECONDS)

    threading.Thread(target=rewrite, daemon=True).start()


def _golden_outside(scene: Path) -> None:
    manifest = manifest_of(scene / "source.bundle")
    manifest["golden"][0]["file"] = f"../outside/{VICTIM}"
    manifest["files"][f"../outside/{VICTIM}"] = record_of((scene / "outside" / VICTIM).read_bytes())
    _seal(scene / "source.bundle", manifest)


def _graphs_at_the_top(scene: Path) -> None:
    """Gives the variant no folder: to remove it would be to remove the bundle."""
    bundle = scene / "source.bundle"
    manifest = manifest_of(bundle)
    for path in (bundle / "fp32").iterdir():
        path.rename(bundle / path.name)
        manifest["files"][path.name] = manifest["files"].pop(f"fp32/{path.name}")
    for graph in manifest["variants"]["fp32"].values():
        if isinstance(graph, dict) and "file" in graph:
            graph["file"] = graph["file"].removeprefix("fp32/")
    _seal(bundle, manifest)


def _pending_outside(scene: Path) -> None:
    names = ["../outside", str(scene / "outside"), "golden", ".", "fp32"]
    (scene / "source.bundle" / ".pending.json").write_bytes(msgspec.json.encode(names))


def _record_outside(scene: Path) -> None:
    marks = {"../outside": None, "0001": "/../../outside", "0002": str(scene / "outside")}
    record = {"made_by": "hybrid-deploy install", "releases": marks}
    (scene / "slots" / RECORD_FILE).write_bytes(msgspec.json.encode(record))


def _socket(path: Path, victim: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's path is short
    os.close(folder)


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _link_to_folder(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent)


def _endless(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/zero")


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victim: Path) -> None:
    path.mkdir()


def _archive(path: Path, victim: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def _seal(bundle: Path, manifest: Mapping[str, Any]) -> None:
    (bundle / MANIFEST_FILE).write_bytes(sealed(msgspec.json.encode(manifest)))


REFUSED: Mapping[str, Case] = {
    "a path with ..": _names(f"../outside/{VICTIM}"),
    "a path with .. after a folder": _names(f"fp32/../../outside/{VICTIM}"),
    "an absolute path": _names(f"OUTSIDE/{VICTIM}"),
    "a path that is not normal": _names("fp32//step.onnx"),
    "a path with backslashes": _names(f"..\\outside\\{VICTIM}"),
    "a path with a drive": _names("C:victim.onnx"),
    "a path with a NUL": _names("fp32/a\0.onnx"),
    "a path with control characters": _names("fp32/\x1b[2Ja\n.onnx"),
    "a name of 300 characters": _names(f"fp32/{'a' * 300}"),
    "dots of Unicode that look like ..": _lists("\u2024\u2024/victim"),
    "a slash of Unicode": _lists("..\uff0fvictim"),
    "files whose names differ in case": _lists("fp32/STEP.onnx"),
    "folders whose names differ in case": _lists("FP32/other"),
    "names that differ in their Unicode form": _two_forms,
    "a name that Windows reserves": _lists("fp32/NUL.onnx"),
    "the file of signatures as a file": _lists("signature.json", content=b"[]"),
    "the note of a killed process as a file": _lists(".pending.json", content=b"[]"),
    "a variant that is called golden": _calls_variant("golden"),
    "a variant that is called ..": _calls_variant(".."),
    "a golden sample outside": _golden_outside,
    "graphs without a folder of their own": _graphs_at_the_top,
    "a link in place of a graph": _replaces(f"source.bundle/{_STEP}", _link),
    "a link in place of a folder": _replaces("source.bundle/fp32", _link_to_folder),
    "an endless device in place of a graph": _replaces(f"source.bundle/{_STEP}", _endless),
    "a pipe in place of a graph": _replaces(f"source.bundle/{_STEP}", _pipe),
    "a pipe in place of the manifest": _replaces(f"source.bundle/{MANIFEST_FILE}", _pipe),
    "a socket in place of a graph": _replaces(f"source.bundle/{_STEP}", _socket),
    "a folder in place of a graph": _replaces(f"source.bundle/{_STEP}", _folder),
    "an archive in place of a bundle": _replaces("source.bundle", _archive),
}
"""Scenes in which every command has to end with one line."""

ANYHOW: Mapping[str, Case] = {
    "slots whose current bundle is outside": _replaces("slots/current", _link_to_folder),
    "a release that is a link": _replaces("slots/0001", _link_to_folder),
    "a file with a second name outside": _hard_link,
    "a note of a killed process that names folders outside": _pending_outside,
    "a leftover folder that is a link": _replaces(
        f"source.bundle/{temporary_name('fp16', 'staging')}", _link_to_folder
    ),
    "a leftover file that is a link": _replaces(
        f"slots/{temporary_name('.installed.json', 'writing')}", _link
    ),
    "a leftover link that leads out": _replaces(
        f"slots/{temporary_name('current', 'linking')}", _link
    ),
    "a lock that is a link": _replaces(lock_name("source.bundle"), _link),
    "a lock of the slots that is a link": _replaces("slots/.hybrid-deploy.lock", _link),
    "a record of the slots that is a link": _replaces(f"slots/{RECORD_FILE}", _link),
    "a record of the slots that names folders outside": _record_outside,
    "signatures that are a link": _replaces("source.bundle/signature.json", _link),
    "a graph that changes all the time": _changing,
}
"""Scenes in which a command may do its work, but not outside of its folders."""
